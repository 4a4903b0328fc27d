"""The authors' gradient of A-Softmax on 1, 2 and 3 ranks, against their Caffe layer's equations written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.rows import initial_rows
from pipeline.optim.sgd import SGD
from tests.distributed.ranks import run_ranks

CLASSES, DIM, BATCH, LAMBDA, RATE, SEED = 7, 5, 12, 3.0, 0.1, 4


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, DIM, generator=generator) * 2, torch.randint(CLASSES, (BATCH,), generator=generator)


def caffe(m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of embeddings and rows, by margin_inner_product_layer.cpp in float64, its polynomials included."""
    x, labels = inputs()
    x = x.double()
    w = initial_rows(range(CLASSES), DIM, SEED).double()
    w /= w.norm(dim=1, keepdim=True)
    logits = x @ w.T
    toward_x = torch.zeros_like(x)
    coefficients = []
    for i, label in enumerate(labels):
        norm = x[i].norm()
        c = logits[i, label] / norm
        sign_0 = torch.sign(c)
        if m == 2:
            value = 2 * sign_0 * c**2 - 1
            of_w, of_x = 4 * sign_0 * c, -(2 * sign_0 * c**2 + 1) / norm
        elif m == 3:
            sign_1 = torch.sign(c.abs() - 0.5)
            sign_2 = sign_0 * (1 + sign_1) - 2
            value = sign_1 * (4 * c**3 - 3 * c) + sign_2
            of_w, of_x = sign_1 * (12 * c**2 - 3), -(8 * sign_1 * c**3 - sign_2) / norm
        else:
            sign_3 = sign_0 * torch.sign(2 * c**2 - 1)
            sign_4 = 2 * sign_0 + sign_3 - 3
            value = sign_3 * (8 * c**4 - 8 * c**2 + 1) + sign_4
            of_w, of_x = sign_3 * (32 * c**3 - 16 * c), -(sign_3 * (24 * c**4 - 8 * c**2 - 1) - sign_4) / norm
        coefficients.append((of_w, of_x))
        logits[i, label] = (LAMBDA * logits[i, label] + norm * value) / (1 + LAMBDA)
    top = torch.softmax(logits, dim=1)
    top[torch.arange(BATCH), labels] -= 1
    top /= BATCH
    for i, label in enumerate(labels):
        of_w, of_x = coefficients[i]
        length = (of_w**2 + of_x**2).sqrt()
        for j in range(CLASSES):
            if j == label:
                step = LAMBDA * w[j] + (of_w * w[j] + of_x * x[i]) / length
                toward_x[i] += top[i, j] * step / (1 + LAMBDA)
            else:
                toward_x[i] += top[i, j] * w[j]
    return toward_x, top.T @ x


def step(rank: int, ranks: int, m: int, fused: bool) -> dict[str, Any]:
    x, labels = inputs()
    share = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    mine = x[share].requires_grad_()
    head = ShardedHead(
        CLASSES,
        DIM,
        ASoftmax(m=m, gradient="authors"),
        dist.group.WORLD,
        seed=SEED,
        optimizer=SGD(steps=1, learning_rate=1, momentum=0, weight_decay=0),
        options=HeadOptions(block=2, fused_update=fused, unit_rows=True),
        backbone_gradient="summed",
    )
    before = head.weight_SD.detach().clone()
    head(mine, labels[share], LAMBDA, learning_rate=RATE).loss.backward()
    head.update(RATE)
    return {"x": mine.grad, "before": before, "rows": head.weight_SD.detach()}


@pytest.mark.parametrize(("ranks", "m", "fused"), [(1, 4, False), (2, 3, False), (3, 4, True), (1, 2, True)])
def test_it_is_that_of_the_caffe_layer(ranks: int, m: int, fused: bool) -> None:
    want_x, want_rows = caffe(m)
    results = run_ranks(step, ranks, m, fused)
    got_x = torch.cat([result["x"] for result in results]).double()
    torch.testing.assert_close(got_x, want_x, rtol=1e-5, atol=1e-6)
    before, after = (torch.cat([result[name] for result in results]).double() for name in ("before", "rows"))
    moved = before - RATE * want_rows
    torch.testing.assert_close(after, moved / moved.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6)
