"""Clipping against torch's own in float64, on all of a gradient and on parts of it."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.training.clipping import clip_, coefficient


@pytest.mark.parametrize("most", [0.5, 3.0, 1e6])
def test_clipping_is_that_of_torch(most: float) -> None:
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(size, generator=generator) for size in ((3, 4), (5,), (2, 2, 2))]
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient, dtype=torch.float64)) for gradient in gradients]
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient.double()
    norm = torch.nn.utils.clip_grad_norm_(parameters, most)
    clipped = [gradient.clone() for gradient in gradients]
    clip_(clipped[:1], norm.square(), most)  # one rank's part
    clip_(clipped[1:], norm.square(), most)  # another's
    for p, got, before in zip(parameters, clipped, gradients, strict=True):
        assert p.grad is not None and got.dtype == torch.float32
        torch.testing.assert_close(got.double(), p.grad, rtol=1e-6, atol=1e-12)
        if most > norm:
            assert torch.equal(got, before)


def test_the_coefficient_is_never_more_than_1_and_hides_nothing_that_is_not_finite() -> None:
    assert coefficient(torch.tensor(0.0), 1.0).item() == 1
    assert coefficient(torch.tensor(16.0), 1.0).item() == pytest.approx(0.25)
    assert coefficient(torch.tensor(math.inf), 1.0).item() == 0
    assert math.isnan(coefficient(torch.tensor(math.nan), 1.0).item())


def test_a_rank_without_a_part_clips_nothing() -> None:
    clip_([], torch.tensor(4.0), 1.0)
