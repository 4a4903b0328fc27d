"""CurricularFace: which classes are hard, what they become, and the running mean of the target cosines."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.head.margins import Observed
from pipeline.head.margins.curricularface import CurricularFace

MARGIN = CurricularFace(scale=10, angle=0.4, rate=0.25)
TARGETS_G = torch.tensor([0.9, 0.2, -0.95], dtype=torch.float64)


def test_a_class_is_hard_for_a_sample_if_it_is_nearer_than_the_target_with_its_margin() -> None:
    t = 0.3
    warp = MARGIN.warp_of_batch({"t": torch.tensor(t, dtype=torch.float64)}, TARGETS_G)
    assert warp is not None and warp.scale == 10
    cosines = torch.linspace(-0.99, 0.99, 12, dtype=torch.float64).repeat(3, 1).t().contiguous().requires_grad_()
    value = warp.value(cosines)
    for sample, target in enumerate(TARGETS_G.tolist()):
        theta = math.acos(target) + 0.4
        for got, cosine in zip(value[:, sample].tolist(), cosines[:, sample].tolist(), strict=True):
            # beyond π the cosine falls on: there every class is hard
            hard = theta > math.pi or cosine > math.cos(theta)
            assert got == pytest.approx(cosine * ((t + cosine) if hard else 1))
    (slope,) = torch.autograd.grad(value.sum(), cosines)
    torch.testing.assert_close(warp.slope(cosines.detach()), slope)


def test_t_follows_the_cosines_of_those_with_a_label() -> None:
    assert MARGIN.initial_state() == {"t": 0}
    valid = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    state = MARGIN.next_state({"t": torch.tensor(0.5, dtype=torch.float64)}, Observed(TARGETS_G, TARGETS_G, valid))
    assert float(state["t"]) == pytest.approx(0.75 * 0.5 + 0.25 * (0.9 - 0.95) / 2)
