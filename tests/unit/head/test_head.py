"""The head in one process: the gradient that is clipped is the one applied; the loss without ignored samples."""

from __future__ import annotations

import pytest
import torch

from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.margins.elasticface import ElasticFaceArc
from pipeline.head.margins.softmax import ModifiedSoftmax
from pipeline.optim.sgd import SGD

LABELS_B = torch.tensor([3, -1, 7, 3, 0, -1])


def head_of(sample_rate: float = 1.0) -> ShardedHead:
    plain = SGD(steps=1, learning_rate=1, momentum=0, weight_decay=0)
    return ShardedHead(20, 4, ModifiedSoftmax(), optimizer=plain, options=HeadOptions(sample_rate=sample_rate))


def embeddings() -> torch.Tensor:
    return torch.randn(len(LABELS_B), 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sample_rate", [1.0, 0.5])
def test_the_row_gradient_is_what_is_applied(sample_rate: float) -> None:
    moved: list[torch.Tensor] = []
    for factor in (1.0, 0.25):
        head = head_of(sample_rate)
        before = head.weight_SD.detach().clone()
        head(embeddings(), LABELS_B).loss.backward()
        assert head.row_gradient is not None
        assert (len(head.row_gradient) < 20) == (sample_rate < 1)
        head.row_gradient.mul_(factor)
        head.update(1.0)
        moved.append(head.weight_SD.detach() - before)
    assert moved[0].abs().max() > 1e-3
    torch.testing.assert_close(moved[1], moved[0] / 4, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_over_those_with_a_label() -> None:
    x, valid = embeddings(), LABELS_B >= 0
    every, alone = head_of()(x, LABELS_B), head_of()(x[valid], LABELS_B[valid])
    torch.testing.assert_close(every.loss, alone.loss, rtol=1e-6, atol=1e-9)
    losses = torch.stack(
        [head_of()(one[None], label[None]).loss for one, label in zip(x[valid], LABELS_B[valid], strict=True)]
    )
    torch.testing.assert_close(alone.loss, losses.mean(), rtol=1e-6, atol=1e-9)


def test_without_a_label_the_loss_is_0_and_moves_nothing() -> None:
    head, x = head_of(), embeddings().requires_grad_()
    loss = head(x, torch.full_like(LABELS_B, -1)).loss
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None and head.row_gradient is not None
    assert not x.grad.any() and not head.row_gradient.any()


def test_what_a_margin_draws_is_of_seed_step_and_sample_and_not_of_its_place() -> None:
    x, samples = embeddings(), torch.tensor([50, 7, 3, 900, 4, 12])

    def loss(order: list[int], seed: int = 5, step: int = 2) -> float:
        head = ShardedHead(20, 4, ElasticFaceArc(scale=4, deviation=1.0), seed=seed)
        head.weight_SD.data.copy_(torch.eye(4).repeat(5, 1))
        return head(x[order], LABELS_B[order], step=step, samples_B=samples[order]).loss.item()

    first = loss([0, 1, 2, 3, 4, 5])
    assert loss([4, 0, 5, 3, 1, 2]) == pytest.approx(first, rel=1e-6)
    assert abs(loss([0, 1, 2, 3, 4, 5], seed=6) - first) > 1e-3
    assert abs(loss([0, 1, 2, 3, 4, 5], step=3) - first) > 1e-3
