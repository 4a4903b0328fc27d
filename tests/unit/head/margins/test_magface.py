"""MagFace: an ArcFace whose angle is on a line, a penalty with its least value at the upper norm, true gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipeline.head.margins import Target
from pipeline.head.margins.arcface import ArcFace
from pipeline.head.margins.magface import MagFace

MARGIN = MagFace(scale=10, norm_low=2, norm_high=6, margin_low=0.1, margin_high=0.5, penalty_weight=3)


def target(norm: float) -> Target:
    generator = torch.Generator().manual_seed(0)
    x, rows = (torch.randn(5, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    return Target(norm * x / x.norm(dim=1, keepdim=True), rows)


@pytest.mark.parametrize(("norm", "angle"), [(1.0, 0.1), (2.0, 0.1), (3.0, 0.2), (6.0, 0.5), (9.0, 0.5)])
def test_at_one_norm_it_is_arcface(norm: float, angle: float) -> None:
    got = MARGIN.target_logit(target(norm), None, {})
    torch.testing.assert_close(got, ArcFace(scale=10, angle=angle).target_logit(target(norm), None, {}))


def test_the_penalty_falls_towards_the_upper_norm_and_is_even_beyond_both() -> None:
    penalties = [float(MARGIN.penalty(target(norm))[0]) for norm in (1.0, 2.0, 3.0, 5.9, 6.0, 9.0)]
    assert penalties[0] == penalties[1] == pytest.approx(3 * (1 / 2 + 2 / 36))
    assert penalties[4] == penalties[5] == pytest.approx(3 * (2 / 6))
    assert penalties[1:5] == sorted(penalties[1:5], reverse=True)


def test_both_terms_have_the_gradient_of_the_norm() -> None:
    x, rows = (part.requires_grad_() for part in (target(3.3).x_GD, target(3.3).rows_GD))
    assert torch.autograd.gradcheck(lambda x, rows: MARGIN.target_logit(Target(x, rows), None, {}), (x, rows))
    assert torch.autograd.gradcheck(lambda x: MARGIN.penalty(Target(x, rows)), (x,))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"norm_low": 110.0}, "norm_low: got 110.0, wanted less than norm_high 110.0"),
        ({"margin_low": 0.9}, "margin_low: got 0.9, wanted less than margin_high 0.8"),
    ],
)
def test_bounds_that_do_not_rise_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MagFace(**keys)
    assert MagFace(margin_low=0.5, margin_high=0.5).margin_high == 0.5  # one for all is a margin
