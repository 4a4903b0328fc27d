"""Missing ranks, as a rank's watchdog sees them; the other ranks' heartbeats are written into the store by hand."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
import torch.distributed as dist

from cluster.ranks import watchdog
from cluster.ranks.black_box import BlackBox, spy
from cluster.ranks.topology import Topology
from cluster.ranks.watchdog import Watchdog, in_short
from cluster.stop import EXIT_LOST
from cluster.stopwatch import STEP

BEAT_SECONDS, SILENT_SECONDS = 0.02, 0.5
PATIENCE_SECONDS = 60  # of a busy machine; a test that passes waits for a second or a few


@pytest.fixture
def store() -> dist.Store:
    made = dist.HashStore()
    for rank, host in enumerate(("alpha", "beta", "gamma")):
        made.set(f"here/{rank}", json.dumps({"host": host}))
    return made


def watch(
    store: dist.Store, num_ranks: int, limit_seconds: float = 1000, silent_seconds: float = SILENT_SECONDS
) -> Watchdog:
    """The watchdog of rank 0, with times that a test can wait for."""
    return Watchdog(store, Topology(0, num_ranks, 0, 1), limit_seconds, BEAT_SECONDS, silent_seconds)


def beat(store: dist.Store, rank: int, number: int, step: int, part: str, marks: int) -> None:
    store.set(f"beat/{rank}", json.dumps({"beat": number, "step": step, "part": part, "marks": marks}))


def beat_until(store: dist.Store, ranks: list[int], part: str, behind: int, condition: Callable[[], bool]) -> None:
    """Write a heartbeat of each of `ranks` again and again, `behind` marks behind, until `condition` holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    number = 0
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        number += 1
        for rank in ranks:
            beat(store, rank, number, 3, part, STEP.marks - behind)
        time.sleep(0.01)


def test_a_rank_without_heartbeats_is_named(store: dist.Store) -> None:
    with watch(store, 3) as dog:
        named = "silent: rank 2 on gamma (no heartbeat for "
        beat_until(store, [1], "communication", 0, lambda: dog.missing().startswith(named))


def test_a_rank_that_responds_but_is_behind_is_named(store: dist.Store) -> None:
    with watch(store, 2) as dog:
        named = "behind: rank 1 on beta is in step 3, data_wait"
        beat_until(store, [1], "data_wait", 2, lambda: dog.missing() == named)


def test_no_rank_is_missing_if_all_are_as_far(store: dist.Store) -> None:
    with watch(store, 2) as dog:
        late = time.monotonic() + 2 * SILENT_SECONDS
        beat_until(store, [1], "communication", 0, lambda: time.monotonic() > late and dog.missing() == "")


def test_work_that_is_no_step_may_take_long_but_not_without_a_rank(
    store: dist.Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(watchdog, "end", lambda message, **_: ended.append(message))
    # silent for longer than a busy machine stops this test, which writes the heartbeats
    with watch(store, 2, limit_seconds=0.1, silent_seconds=3) as dog, dog.patient("an evaluation"):
        with dog.patient("a save"):
            pass
        started = time.monotonic()
        beat_until(store, [1], "evaluation", 0, lambda: time.monotonic() > started + 1)
        assert ended == []
        assert "an evaluation takes longer than 0 s; every rank responds" in caplog.text
        beat_until(store, [], "evaluation", 0, lambda: ended != [])
    assert "silent: rank 1 on beta" in ended[0]


def test_who_is_silent_comes_first_and_a_librarys_words_last_without_its_path(store: dist.Store) -> None:
    """The words are gloo's in torch 2.x when a peer is killed, and NCCL's, which has no place before them."""
    gloo = RuntimeError(
        "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:48259: "
        "Connection reset by peer. This is typically caused by a remote worker hanging or bugs in the application. "
        "Check the logs of the remote worker before reporting an error. GLHF! \U0001f3d6\ufe0f\nmore"
    )
    assert in_short(gloo) == "Read error [127.0.0.1]:48259: Connection reset by peer"
    assert in_short(RuntimeError("[rank 1] NCCL error: remote process exited\nor so")) == (
        "[rank 1] NCCL error: remote process exited"
    )
    with watch(store, 2, silent_seconds=0.1) as dog:
        dog.tick(6)
        words = dog.explain("an error", in_short(gloo))
    assert words.startswith("silent: rank 1 on beta (no heartbeat for ")
    assert words.endswith(f" s); rank 0 on {socket.gethostname()}: an error in step 7: {in_short(gloo)}")


HANGS = """
import sys, time, torch.distributed as dist
from pathlib import Path
from cluster.ranks import watchdog
from cluster.ranks.topology import Topology
stacks = Path(sys.argv[1])
with watchdog.Watchdog(dist.HashStore(), Topology(), 0.2, 0.05, 0.05, stacks) as dog:
    dog.tick(6)
    def a_step_that_never_ends():
        time.sleep(60)
    a_step_that_never_ends()
"""


def test_a_step_that_never_ends_ends_the_process_with_its_stack(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGS, str(tmp_path / "stacks")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == EXIT_LOST, done.stderr
    told = f"every rank responds; rank 0 on {socket.gethostname()}: no progress for 0.2 s in step 7"
    assert f"{told}. Stacks:" in done.stderr
    assert "in a_step_that_never_ends" in done.stderr
    left = (tmp_path / "stacks" / "rank-0.txt").read_text()
    assert 0 < left.index(told) < left.index("\n") < left.index("in a_step_that_never_ends"), "time and reason first"


LOCKED = """
import ctypes, sys, time
from pathlib import Path
from cluster.ranks.black_box import BlackBox
box = BlackBox(Path(sys.argv[1]), 3)
box.arm(0.2)
def in_a_library():
    ctypes.PyDLL(None).sleep(3)  # holds the interpreter's lock
in_a_library()
box.close()
"""


def test_a_rank_that_holds_the_interpreters_lock_prints_its_stack(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCKED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "in in_a_library" in done.stderr


def test_py_spy_is_that_of_the_environment_whatever_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(sys.executable).with_name("py-spy")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert spy() == (str(own) if own.exists() else None)


def test_a_box_that_is_closed_prints_nothing_any_more(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    box = BlackBox(tmp_path, 3)
    for closes in (False, True):
        box.arm(0.1)
        if closes:
            box.close()
        time.sleep(0.4)
        assert ("most recent call first" in capfd.readouterr().err) != closes


FREEZES = """
import os, signal, sys
def frozen_here():
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
frozen_here()
"""


@pytest.mark.skipif(spy() is None, reason="needs py-spy")
def test_a_frozen_ranks_stack_is_read_by_the_lowest_that_answers_on_its_host(
    store: dist.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in (1, 2):
        store.set(f"here/{rank}", json.dumps({"host": socket.gethostname()}))
    ended = Event()
    monkeypatch.setattr(watchdog, "end", lambda *_, **__: ended.set())
    with subprocess.Popen([sys.executable, "-c", FREEZES], stdout=subprocess.PIPE, text=True) as frozen:
        try:
            assert frozen.stdout and frozen.stdout.readline() == "ready\n"
            place = {"beat": 1, "step": 3, "part": "forward", "marks": 0, "process": frozen.pid}
            store.set("beat/2", json.dumps(place))
            dog = Watchdog(store, Topology(1, 3, 0, 1), 0.3, BEAT_SECONDS, SILENT_SECONDS, tmp_path)
            with dog:
                assert ended.wait(PATIENCE_SECONDS)
        finally:
            frozen.kill()
    assert "frozen_here" in (tmp_path / "rank-2.txt").read_text()
    assert "silent: rank 0 on alpha" in (tmp_path / "rank-1.txt").read_text()


COLLECTIVES = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from cluster.ranks.black_box import BlackBox, record_collectives
record_collectives()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
dist.all_reduce(torch.ones(5))
BlackBox(Path(sys.argv[1]), 0).write("why")
"""


def test_the_last_collectives_are_left(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", COLLECTIVES, tmp_path], check=True, timeout=60)
    found = pickle.loads((tmp_path / "rank-0.collectives").read_bytes())
    assert [(one["profiling_name"], one["input_sizes"]) for one in found["entries"]] == [("gloo:all_reduce", [[5]])]
    assert not found["entries"][0].get("frames")  # which would take torch seconds, of a restart


def test_the_stacks_of_an_earlier_hang_stay_and_a_folder_that_takes_none_is_no_error(tmp_path: Path) -> None:
    box = BlackBox(tmp_path / "stacks", 0)
    (tmp_path / "file").touch()
    for why, other in (("once", box), ("twice", box), ("nowhere", BlackBox(tmp_path / "file" / "stacks", 0))):
        other.write(why)
        other.close()
    left = (tmp_path / "stacks" / "rank-0.txt").read_text()
    assert left.index(" once\n") < left.index(" twice\n") < left.rindex("test_watchdog.py")


def test_a_run_that_does_not_hang_leaves_nothing(store: dist.Store, tmp_path: Path) -> None:
    with Watchdog(store, Topology(), 1000, BEAT_SECONDS, SILENT_SECONDS, tmp_path / "stacks"):
        time.sleep(0.5)
    assert not (tmp_path / "stacks").exists()
