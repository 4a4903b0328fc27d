"""Who is missing, as a rank's watchdog sees it; what the others say is written into the store by hand."""

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


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(watchdog, "_SILENT_SECONDS", 0.5)


@pytest.fixture
def store() -> dist.Store:
    made = dist.HashStore()
    for rank, host in enumerate(("alpha", "beta", "gamma")):
        made.set(f"here/{rank}", json.dumps({"host": host}))
    return made


def say(store: dist.Store, rank: int, beat: int, step: int, part: str, marks: int) -> None:
    store.set(f"beat/{rank}", json.dumps({"beat": beat, "step": step, "part": part, "marks": marks}))


def speak_until(store: dist.Store, ranks: list[int], part: str, behind: int, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    beat = 0
    while not condition():
        assert time.monotonic() < deadline
        beat += 1
        for rank in ranks:
            say(store, rank, beat, 3, part, STEP.marks - behind)
        time.sleep(0.01)


def test_a_rank_that_stopped_speaking_is_named(store: dist.Store) -> None:
    with Watchdog(store, Topology(0, 3, 0, 1), limit_seconds=1000) as dog:
        speak_until(store, [1], "communication", 0, lambda: "silent" in dog.missing())
        assert dog.missing().startswith("silent: rank 2 on gamma (no sign of life for ")


def test_a_rank_that_speaks_but_stands_further_back_is_named(store: dist.Store) -> None:
    with Watchdog(store, Topology(0, 2, 0, 1), limit_seconds=1000) as dog:
        speak_until(store, [1], "data_wait", 2, lambda: dog.missing() != "")
        assert dog.missing() == "behind: rank 1 on beta stands in step 3, data_wait"


def test_nobody_is_missing_where_all_stand_alike(store: dist.Store) -> None:
    with Watchdog(store, Topology(0, 2, 0, 1), limit_seconds=1000) as dog:
        started = time.monotonic()
        speak_until(store, [1], "communication", 0, lambda: time.monotonic() > started + 1)
        assert dog.missing() == ""


def test_work_that_is_no_step_may_take_long_but_not_without_a_rank(
    store: dist.Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(watchdog, "end", lambda message, **_: ended.append(message))
    with Watchdog(store, Topology(0, 2, 0, 1), limit_seconds=0.1) as dog, dog.patient("an evaluation"):
        with dog.patient("a save"):
            pass
        started = time.monotonic()
        speak_until(store, [1], "evaluation", 0, lambda: time.monotonic() > started + 1)
        assert ended == []
        assert "an evaluation takes longer than 0 s; every rank gives signs of life" in caplog.text
        speak_until(store, [], "evaluation", 0, lambda: ended != [])
    assert "silent: rank 1 on beta" in ended[0]


HANGS = """
import time, torch.distributed as dist
from cluster import watchdog
from cluster.topology import Topology
watchdog._SILENT_SECONDS = watchdog._BEAT_SECONDS = 0.05
with watchdog.Watchdog(dist.HashStore(), Topology(), limit_seconds=0.2) as dog:
    dog.tick(6)
    def a_step_that_never_ends():
        time.sleep(60)
    a_step_that_never_ends()
"""


def test_a_step_that_never_ends_ends_the_process_with_its_stack() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == EXIT_LOST, done.stderr
    assert "nothing moved for 0.2 s in step 7; every rank speaks. Stacks:" in done.stderr
    assert "in a_step_that_never_ends" in done.stderr
