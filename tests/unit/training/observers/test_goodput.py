"""A run's events, and what its account and its metrics then say of the wall time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.metrics import CAUSES
from cluster.telemetry import Telemetry
from pipeline.training.observers.goodput import Goodput, read_account
from tests.records import evaluated, record, window_of


class Start:
    """A start of a run in a folder, a clock that the test sets, and the first rank's metrics."""

    def __init__(self, folder: Path, began: float) -> None:
        self.now = began
        self.telemetry = Telemetry(rank=0, host="here", job="run")
        path = folder / "goodput.json"
        self.observer = Goodput(read_account(path, began), self.telemetry, path, clock=lambda: self.now)

    def step(self, number: int, ends: float, **changes: object) -> None:
        self.now = ends
        one = record(number, **{"seconds": 1.0, **changes})
        self.observer.recorded(one, window_of(one))

    def lost(self) -> dict[str, float]:
        """Seconds by cause, as this start exports them; without those that are 0."""
        read = self.telemetry.registry.get_sample_value
        every = {
            cause: read("spherescale_lost_seconds_total", self.telemetry.labels | {"cause": cause}) for cause in CAUSES
        }
        return {cause: seconds for cause, seconds in every.items() if seconds}

    def ratio(self) -> float | None:
        return self.telemetry.registry.get_sample_value("spherescale_goodput_ratio", self.telemetry.labels)


def test_a_run_with_every_cause(tmp_path: Path) -> None:
    first = Start(tmp_path, began=100.0)
    first.now = 108.0
    first.observer.started(0)
    first.step(1, 111.0)  # began at 110: ten seconds of start
    first.step(2, 113.0, stall_seconds=1.0)  # saves
    first.step(3, 114.0, parts={"data_wait": 0.25, "communication": 0.5}, waited_seconds=0.25)
    first.now = 116.0
    first.observer.evaluated(evaluated(3))  # 1.5 s, and half a second between
    first.step(4, 117.0, skipped="spike")
    first.step(5, 122.0, seconds=5.0)  # written down: five seconds have passed since the last time
    first.step(6, 123.0)  # and killed
    assert first.lost() == {
        **{"start": 10, "save_stall": 1, "data_wait": 0.25, "straggler": 0.25},
        **{"evaluation": 1.5, "lost_work": 1},
    }
    assert first.ratio() == pytest.approx(9 / 23)

    second = Start(tmp_path, began=130.0)
    second.observer.started(2)
    second.step(3, 141.0)
    # Of the first start 22 s are known; its steps 3 and 5 are done again: half a second between included, 6 s.
    assert second.lost() == {"lost_work": 6, "restart": 18}
    assert second.ratio() == pytest.approx(3 / 41)


def test_a_roll_back_is_lost_work(tmp_path: Path) -> None:
    run = Start(tmp_path, began=0.0)
    run.observer.started(0)
    for step in (1, 2, 3):
        run.step(step, float(step), stall_seconds=0.0 if step == 1 else None)
    run.step(2, 10.0)  # loaded the checkpoint of step 1 until second 9
    assert run.lost() == {"lost_work": 2 + 6}
    assert run.ratio() == pytest.approx(2 / 10)


def test_between_a_good_end_and_the_next_start_nothing_is_lost(tmp_path: Path) -> None:
    first = Start(tmp_path, began=0.0)
    first.observer.started(0)
    first.step(1, 1.0, stall_seconds=0.0)
    first.observer.ended(finished=True)
    second = Start(tmp_path, began=1000.0)
    second.observer.started(1)
    second.step(2, 1003.0)
    assert second.lost() == {"restart": 2}
    assert second.ratio() == pytest.approx(2 / 4)


def test_a_start_that_came_to_no_step_belongs_to_the_start(tmp_path: Path) -> None:
    Start(tmp_path, began=0.0).observer.started(0)
    again = Start(tmp_path, began=30.0)
    again.observer.started(0)
    again.step(1, 41.0)
    assert again.lost() == {"start": 40}
    assert again.ratio() == pytest.approx(1 / 41)


@pytest.mark.parametrize("held", ["", "[]", "{}", '{"marks": 3}', '{"marks": [], "lost": {"start": "x"}}'])
def test_a_file_that_is_no_account_is_passed_over(tmp_path: Path, held: str) -> None:
    (tmp_path / "goodput.json").write_text(held)
    account = read_account(tmp_path / "goodput.json", 5.0)
    assert (account.began, account.until, account.trained) == (5.0, 5.0, 0.0)


def test_other_ranks_write_nothing_and_count_the_same(tmp_path: Path) -> None:
    telemetry = Telemetry(rank=1, host="here", job="run")
    observer = Goodput(read_account(tmp_path / "goodput.json", 0.0), telemetry, None, clock=lambda: 4.0)
    observer.started(0)
    observer.recorded(record(1, seconds=1.0), window_of(record(1)))
    observer.ended(finished=True)
    assert list(tmp_path.iterdir()) == []
    labels = telemetry.labels | {"cause": "start"}
    assert telemetry.registry.get_sample_value("spherescale_lost_seconds_total", labels) == 3


def test_the_file_says_what_the_metrics_say(tmp_path: Path) -> None:
    run = Start(tmp_path, began=0.0)
    run.observer.started(0)
    run.step(1, 4.0)
    run.observer.ended(finished=False)
    held = json.loads((tmp_path / "goodput.json").read_text())
    assert {cause: seconds for cause, seconds in held["lost"].items() if seconds} == run.lost() == {"start": 3}
    assert (held["goodput_ratio"], held["paused"]) == (0.25, False)
