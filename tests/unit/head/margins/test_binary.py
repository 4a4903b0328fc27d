"""SphereFace2 and UniFace: where the bias begins, and what the similarity adjustment does."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.head import ShardedHead
from pipeline.head.margins.sphereface2 import SphereFace2, adjusted
from pipeline.head.margins.uniface import UniFace


@pytest.mark.parametrize("classes", [1, 2, 3, 30, 10_000, 10**8])
@pytest.mark.parametrize("scale", [1.0, 40.0, 200.0])
def test_sphereface2_begins_with_positives_and_negatives_in_balance(classes: int, scale: float) -> None:
    margin = SphereFace2(scale=scale)
    bias = margin.initial_bias(classes)
    at_zero = 2 * 0.5**3 - 1
    positive = 0.7 / (1 + math.exp(scale * (at_zero - 0.4) + bias))
    negative = 0.3 * max(classes - 1, 1) / (1 + math.exp(-scale * (at_zero + 0.4) - bias))
    assert math.isfinite(bias)
    assert negative == pytest.approx(positive, rel=1e-9)


def test_uniface_begins_with_the_authors_threshold() -> None:
    assert UniFace().initial_bias(1000) == pytest.approx(-math.log(10_000))


def test_the_adjustment_keeps_the_ends_and_lowers_all_between() -> None:
    cosines = torch.linspace(-1, 1, 101, dtype=torch.float64, requires_grad=True)
    value = adjusted(cosines, 3.0)
    assert value.tolist()[0] == -1 and value.tolist()[-1] == 1
    assert (value[1:-1] < cosines[1:-1]).all() and (value.diff() > 0).all()
    (slope,) = torch.autograd.grad(value.sum(), cosines)
    torch.testing.assert_close(SphereFace2(detached=False).warp.slope(cosines.detach()), slope)
    assert (SphereFace2().warp.slope(cosines.detach()) == 1).all()


def test_the_papers_equation_is_the_weights_at_one() -> None:
    assert SphereFace2(loss_weight=1).weights == pytest.approx((0.7 / 40, 0.3 / 40))
    assert UniFace(balance=0.2).weights == (1, 0.2)


def test_guessing_costs_what_a_batch_at_right_angles_does() -> None:
    for margin in (SphereFace2(), UniFace(balance=0.3)):
        head = ShardedHead(6, 8, margin)
        head.weight_SD.data.copy_(torch.eye(8)[:6])
        x = torch.eye(8)[6:7]  # at a right angle to all
        assert head(x, torch.tensor([2])).loss.item() == pytest.approx(margin.loss_of_guessing(6), rel=1e-6)
