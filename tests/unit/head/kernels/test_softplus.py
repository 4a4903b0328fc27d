"""The sum of binary losses in blocks: that of all logits at once, true gradients of the bias too, a sink, and ends."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.head.kernels import Scoring, Sink
from pipeline.head.kernels.softplus import nontarget_softplus
from pipeline.head.margins import Warp
from pipeline.head.margins.sphereface2 import Similarity

WARP = Similarity(6.0, 3.0, 0.4, detached=False)
TARGETS = torch.tensor([0, -1, 10, 5])
BIAS = torch.tensor(-0.7, dtype=torch.float64)


def inputs(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features, weight = (torch.randn(n, 6, dtype=torch.float64, generator=generator) for n in (4, 11))
    return features.mul_(scale).requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize(("normalise", "warp"), [(False, None), (True, None), (True, WARP)], ids=str)
def test_gradients_are_true(normalise: bool, warp: Warp | None) -> None:
    def streamed(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if warp:
            features = warp.scale * F.normalize(features)
        return nontarget_softplus(features, weight, TARGETS, bias, Scoring(normalise, warp, block=3))

    assert torch.autograd.gradcheck(streamed, (*inputs(), BIAS.clone().requires_grad_()))


def test_values_are_those_of_all_logits_at_once() -> None:
    features, weight = inputs()
    got, rows = nontarget_softplus(features, weight, TARGETS, BIAS, Scoring(normalise_rows=False, block=4))
    losses = F.softplus(features @ weight.t() + BIAS)
    for sample, target in enumerate(TARGETS.tolist()):
        torch.testing.assert_close(got[sample], losses[sample].sum() - (losses[sample, target] if target >= 0 else 0))
        assert torch.equal(rows[sample], weight[target] if target >= 0 else torch.zeros(6, dtype=torch.float64))


def test_logits_of_any_size_are_safe() -> None:
    features, weight = inputs(1e4)
    got, _ = nontarget_softplus(features, weight, TARGETS, BIAS, Scoring(normalise_rows=True, block=4))
    got.sum().backward()
    for tensor in (got, features.grad, weight.grad):
        assert tensor is not None and tensor.isfinite().all()


def test_a_sink_takes_the_sampled_rows_block_by_block() -> None:
    features, weight = inputs()
    numbers, targets = torch.tensor([0, 3, 4, 8, 10]), torch.tensor([0, -1, 4, 2])
    taken: list[tuple[int, torch.Tensor]] = []
    sink = Sink(lambda start, grad: taken.append((start, grad)))
    scoring = Scoring(normalise_rows=True, block=2)
    (result, rows) = nontarget_softplus(features, weight, targets, BIAS, scoring, sink, numbers)
    (result.sum() + rows.square().sum()).backward()
    assert weight.grad is None and [start for start, _ in taken] == [0, 2, 4]
    part = weight.detach()[numbers].requires_grad_()
    (result, rows) = nontarget_softplus(features.detach(), part, targets, BIAS, scoring)
    (result.sum() + rows.square().sum()).backward()
    assert part.grad is not None
    torch.testing.assert_close(torch.cat([grad for _, grad in taken]), part.grad)
