"""The block loop: true gradients, a sink that gets what autograd would, and the memory that it says."""

from __future__ import annotations

import pytest
import torch

from pipeline.head.kernels import BlockLoop, Scoring, Sink, choose
from pipeline.head.margins import Margin, Warp
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.margins.arcface import ArcFace
from pipeline.head.margins.softmax import Softmax
from pipeline.head.margins.sphereface_r import DividedAngle

A_SOFTMAX = ASoftmax()
WARP = DividedAngle(1.4, 6.0, detached=False)
TARGETS = torch.tensor([0, -1, 10, 5])


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features, weight = (torch.randn(n, 6, dtype=torch.float64, generator=generator) for n in (4, 11))
    return features.requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize(("normalise", "warp"), [(False, None), (True, None), (True, WARP)], ids=str)
def test_gradients_are_true(normalise: bool, warp: Warp | None) -> None:
    def streamed(features: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if warp:
            features = warp.scale * torch.nn.functional.normalize(features)
        return BlockLoop().nontarget_logsumexp(features, weight, TARGETS, Scoring(normalise, warp, block=3))

    assert torch.autograd.gradcheck(streamed, inputs())


def test_values_are_those_of_all_logits_at_once() -> None:
    features, weight = inputs()
    got, rows = BlockLoop().nontarget_logsumexp(features, weight, TARGETS, Scoring(normalise_rows=False, block=4))
    logits = features @ weight.t()
    for sample, target in enumerate(TARGETS.tolist()):
        rest = [logits[sample, c] for c in range(11) if c != target]
        torch.testing.assert_close(got[sample], torch.stack(rest).exp().sum().log())
        assert torch.equal(rows[sample], weight[target] if target >= 0 else torch.zeros(6, dtype=torch.float64))


def test_a_sink_gets_every_block_of_autograds_gradient_in_order() -> None:
    features, weight = inputs()
    taken: list[tuple[int, torch.Tensor]] = []
    for sink in (None, Sink(lambda start, grad: taken.append((start, grad)))):
        result, rows = BlockLoop().nontarget_logsumexp(
            features, weight, TARGETS, Scoring(normalise_rows=True, block=4), sink
        )
        (result.sum() + rows.square().sum()).backward()
    assert [start for start, _ in taken] == [0, 4, 8]
    assert weight.grad is not None  # of the pass without a sink alone
    torch.testing.assert_close(torch.cat([grad for _, grad in taken]), weight.grad)


def test_memory_does_not_grow_with_the_rows_beyond_a_block() -> None:
    def needed(rows: int, dtype: torch.dtype = torch.float32, margin: Margin = A_SOFTMAX) -> int:
        kernel = choose("cpu", dtype, margin)
        return kernel.memory_bytes(rows=rows, batch=512, embedding_dim=512, dtype=dtype, block=2048, margin=margin)

    assert needed(2048) == needed(10**9) == 18 * 2**20
    assert needed(1024) == 4 * (1024 * 3 * 512 + 6 * 512 * 512)
    assert needed(2048, torch.bfloat16) == 4 * (2048 * 3 * 512 + 6 * 512 * 512)
    # embeddings beside what they are at one length; rows that are read where they lie
    assert needed(2048, margin=ArcFace()) == 4 * (2048 * 3 * 512 + 7 * 512 * 512)
    assert needed(2048, margin=Softmax()) == 4 * (2048 * 2 * 512 + 6 * 512 * 512)
