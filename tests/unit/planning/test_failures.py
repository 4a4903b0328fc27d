"""The cost of failures against runs that are simulated failure by failure, and against the limits of the papers."""

from __future__ import annotations

import math
import random

import pytest

from pipeline.planning.failures import Failures, best_interval_seconds, lost_work_seconds, overhead


def simulate(interval: float, failures: Failures, work: float, seed: int) -> tuple[float, list[float]]:
    """Wall time of `work` seconds of training, and the training that each failure took with it."""
    chance = random.Random(seed)
    next_failure = chance.expovariate(1 / failures.between_seconds)
    now = done = 0.0  # done: up to the last whole checkpoint
    lost: list[float] = []
    while done < work:
        stretch = min(interval, work - done) + failures.stall_seconds
        if now + stretch <= next_failure:
            now, done = now + stretch, done + stretch - failures.stall_seconds
            continue
        lost.append(next_failure - now)
        now = next_failure + failures.restart_seconds
        next_failure = now + chance.expovariate(1 / failures.between_seconds)
    return now, lost


@pytest.mark.parametrize("interval", [50.0, 300.0, 2000.0])
def test_time_and_lost_work_are_those_of_simulated_runs(interval: float) -> None:
    # no failure falls into a restart, in either: Daly's restart may be hit again, so R is small here
    failures = Failures(between_seconds=1000, restart_seconds=5, stall_seconds=10)
    wall, lost = simulate(interval, failures, work=interval * 20_000, seed=1)
    assert overhead(interval, failures) == pytest.approx(wall / (interval * 20_000) - 1, rel=0.03)
    assert lost_work_seconds(interval, failures) == pytest.approx(sum(lost) / len(lost), rel=0.03)


def test_a_save_that_is_not_yet_whole_costs_the_stretch_before() -> None:
    chance, stretch, write, mean = random.Random(2), 110.0, 40.0, 500.0
    failures = Failures(mean, 0, 10, write)
    found = []
    for _ in range(100_000):
        moment = chance.expovariate(1 / mean)
        inside = moment % stretch
        found.append(inside + (stretch if inside < write else 0))
    assert lost_work_seconds(100, failures) == pytest.approx(sum(found) / len(found), rel=0.02)
    assert overhead(100, failures) > overhead(100, Failures(mean, 0, 10))


def test_rare_failures_cost_half_an_interval_and_the_stalls() -> None:
    failures = Failures(between_seconds=1e9, restart_seconds=60, stall_seconds=1)
    assert lost_work_seconds(600, failures) == pytest.approx(601 / 2, rel=1e-4)
    assert overhead(600, failures) == pytest.approx(1 / 600 + (60 + 300.5) / 1e9, rel=1e-3)


@pytest.mark.parametrize(("stall", "between"), [(0.5, 86_400), (30, 7200), (120, 3600), (600, 1200)])
def test_no_other_interval_costs_less(stall: float, between: float) -> None:
    failures = Failures(between, restart_seconds=60, stall_seconds=stall)
    best = best_interval_seconds(failures)
    around = min(overhead(best * (0.5 + 0.001 * i), failures) for i in range(1500))
    assert overhead(best, failures) == pytest.approx(around, rel=0.01)
    if stall < between / 100:
        assert best == pytest.approx(math.sqrt(2 * stall * between), rel=0.05), "Young's, for a cheap save"


def test_a_save_that_takes_longer_than_failures_leave_has_daly_s_last_answer() -> None:
    assert best_interval_seconds(Failures(between_seconds=10, restart_seconds=0, stall_seconds=20)) == 10


@pytest.mark.parametrize("field", ["between_seconds", "restart_seconds", "stall_seconds", "write_seconds"])
def test_times_that_are_none_are_refused_by_name(field: str) -> None:
    good = {"between_seconds": 1.0, "restart_seconds": 1.0, "stall_seconds": 1.0, "write_seconds": 1.0}
    with pytest.raises(ValueError, match=f"{field}: got -1"):
        Failures(**{**good, field: -1})
    with pytest.raises(ValueError, match=f"{field}: got nan"):
        Failures(**{**good, field: math.nan})
