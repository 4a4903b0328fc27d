"""Target angles against a list-by-list count, and the stall's warning on series that stall, learn and have learnt."""

import math

import pytest
import torch

from pipeline.head.health import StallWatch, target_angles


def test_angles_are_those_counted_one_by_one() -> None:
    cosines = [0.99, 0.49, 0.0, -0.5, -0.99, 0.2]
    got = target_angles(torch.tensor(cosines), m=3)
    angles = sorted(math.acos(c) for c in cosines)
    assert got.median == pytest.approx((angles[2] + angles[3]) / 2, abs=1e-6)
    assert got.beyond_pi == sum(3 * a > math.pi for a in angles) / 6
    assert list(got.quantiles) == sorted(got.quantiles)


def test_no_labelled_sample_gives_nan() -> None:
    got = target_angles(torch.zeros(0), m=3)
    assert math.isnan(got.median) and math.isnan(got.beyond_pi)


def words(series: list[tuple[float, float]], steps: int = 20, floor_at: int = 5, classes: int = 1000) -> list[str]:
    watch = StallWatch(classes, steps)
    said = [
        watch.look(step, loss, angle, 5.0 if step >= floor_at else 100.0, 5.0)
        for step, (angle, loss) in enumerate(series)
    ]
    return [word for word in said if word]


def test_a_stalled_series_is_told_with_the_numbers_that_matter() -> None:
    said = words([(1.57, 7.2)] * 20)
    assert len(said) == 1
    assert said[0].startswith("angle to own class has not moved in 20 steps (median 1.570 → 1.570 rad, loss 7.200")
    assert "ln C = 6.908" in said[0]
    assert "λ fell to 5 at step 5: raise head.lambda_max, start from head.m 1" in said[0]


def test_it_is_told_once_in_so_many_steps() -> None:
    assert len(words([(1.57, 7.2)] * 60)) == 3


def test_before_lambda_has_fallen_its_value_is_told() -> None:
    assert "λ is 100:" in words([(1.57, 7.2)] * 20, floor_at=99)[0]


@pytest.mark.parametrize(
    "series",
    [
        [(1.57 - 0.005 * t, 7.2) for t in range(60)],  # turning, if slowly
        [(0.4, 0.01)] * 60,  # learnt: nothing turns any more
        [(1.57, 6.0)] * 60,  # the loss is well below chance
        [(math.nan, math.nan)] * 60,  # skipped steps
    ],
)
def test_nothing_is_said_of_a_run_that_learns_or_has_learnt(series: list[tuple[float, float]]) -> None:
    assert words(series) == []
