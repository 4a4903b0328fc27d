"""Target angles against a count one by one, and the stall's warning on series that stall, learn and have learnt."""

import math

import pytest
import torch

from pipeline.head.health import StallWatch, target_angles
from pipeline.head.margins import Margin
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.margins.arcface import CosFace
from pipeline.head.margins.softmax import ModifiedSoftmax, Softmax
from pipeline.head.margins.sphereface_r import SphereFaceR2


def test_angles_are_those_counted_one_by_one() -> None:
    cosines = [0.99, 0.49, 0.0, -0.5, -0.99, 0.2]
    got = target_angles(torch.tensor(cosines), ASoftmax(m=3))
    angles = sorted(math.acos(c) for c in cosines)
    assert got.median == pytest.approx((angles[2] + angles[3]) / 2, abs=1e-6)
    assert got.beyond_pi == sum(3 * a > math.pi for a in angles) / 6
    assert list(got.quantiles) == sorted(got.quantiles)


def test_no_labelled_sample_gives_nan() -> None:
    got = target_angles(torch.zeros(0), ASoftmax(m=3))
    assert math.isnan(got.median)
    assert got.beyond_pi is not None and math.isnan(got.beyond_pi)


@pytest.mark.parametrize("margin", [Softmax(), CosFace(), SphereFaceR2()])
def test_a_margin_that_leaves_the_angle_as_it_is_has_none_beyond_pi(margin: Margin) -> None:
    assert target_angles(torch.tensor([0.5, -0.9]), margin).beyond_pi is None
    assert target_angles(torch.zeros(0), margin).beyond_pi is None


def words(series: list[tuple[float, float]], steps: int = 20, floor_at: int = 5, classes: int = 1000) -> list[str]:
    watch = StallWatch(math.log(classes), steps)
    said = [
        watch.look(step, loss, angle, 5.0 if step >= floor_at else 100.0, ASoftmax(lambda_min=5.0))
        for step, (angle, loss) in enumerate(series)
    ]
    return [word for word in said if word]


def test_a_stalled_series_is_reported_with_its_numbers() -> None:
    said = words([(1.57, 7.2)] * 20)
    assert len(said) == 1
    assert said[0].startswith("the target angle has not fallen in 20 steps (median 1.570 → 1.570 rad, loss 7.200")
    assert "chance is 6.908" in said[0]
    assert "λ fell to 5 at step 5: raise head.margin.lambda_max, start from head.margin.m 1" in said[0]


def test_it_is_reported_once_in_so_many_steps() -> None:
    assert len(words([(1.57, 7.2)] * 60)) == 3


def test_before_lambda_has_fallen_its_value_is_reported() -> None:
    assert "λ is 100:" in words([(1.57, 7.2)] * 20, floor_at=99)[0]


@pytest.mark.parametrize(
    ("margin", "advice"),
    [
        (CosFace(), "; start from a smaller margin (head.phases), or raise optimizer.learning_rate"),
        (Softmax(), "; raise optimizer.learning_rate"),
        (ModifiedSoftmax(), "; raise optimizer.learning_rate"),
    ],
)
def test_advice_is_about_what_the_margin_has(margin: Margin, advice: str) -> None:
    watch = StallWatch(math.log(1000), 4)
    warnings = [watch.look(step, 7.2, 1.57, None, margin) for step in range(4)]
    assert warnings[:3] == [None] * 3
    assert warnings[3] is not None and warnings[3].endswith(advice)
    assert "λ" not in warnings[3]


@pytest.mark.parametrize(
    "series",
    [
        [(1.57 - 0.005 * t, 7.2) for t in range(60)],  # falling, if slowly
        [(0.4, 0.01)] * 60,  # learnt: nothing falls any more
        [(1.57, 6.0)] * 60,  # the loss is well below chance
        [(math.nan, math.nan)] * 60,  # skipped steps
    ],
)
def test_nothing_is_said_of_a_run_that_learns_or_has_learnt(series: list[tuple[float, float]]) -> None:
    assert words(series) == []
