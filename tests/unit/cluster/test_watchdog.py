"""Missing ranks, as a rank's watchdog sees them; the other ranks' heartbeats are written into the store by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch.distributed as dist

from cluster import watchdog
from cluster.stop import EXIT_LOST
from cluster.stopwatch import STEP
from cluster.topology import Topology
from cluster.watchdog import Watchdog

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


HANGS = """
import time, torch.distributed as dist
from cluster import watchdog
from cluster.topology import Topology
with watchdog.Watchdog(dist.HashStore(), Topology(), 0.2, beat_seconds=0.05, silent_seconds=0.05) as dog:
    dog.tick(6)
    def a_step_that_never_ends():
        time.sleep(60)
    a_step_that_never_ends()
"""


def test_a_step_that_never_ends_ends_the_process_with_its_stack() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == EXIT_LOST, done.stderr
    assert "no progress for 0.2 s in step 7; every rank responds. Stacks:" in done.stderr
    assert "in a_step_that_never_ends" in done.stderr
