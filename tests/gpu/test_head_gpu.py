"""The head on the GPU: every margin in every type equals dense float64 numbers, alone and on two ranks; it repeats."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.ranks.collectives import Group
from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.kernels import BlockLoop
from pipeline.head.margins import MARGINS
from pipeline.head.rows import initial_rows
from pipeline.optim.sgd import SGD
from tests.distributed.dense import dense_loss
from tests.distributed.ranks import run_ranks
from tests.distributed.test_head import CHOICES

BATCH, DIM, LAMBDA, RATE = 24, 64, 5.0, 0.1
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# Less than a block, uneven in blocks and in any tile, and one class more than whole blocks.
CLASSES = (3, 1003, 1025)


def inputs(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings and labels, one of them ignored."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, DIM, generator=generator) * 3
    labels = torch.randint(0, classes, (BATCH,), generator=generator)
    labels[5] = -1
    return x, labels


def step(
    device: torch.device,
    choice: dict[str, Any],
    dtype: torch.dtype,
    classes: int,
    group: Group = None,
    share: slice = slice(None),
    fused: bool = False,
) -> dict[str, torch.Tensor]:
    """One step: loss, gradients, rows after the update."""
    x, labels = inputs(classes)
    mine = x[share].to(device).requires_grad_()
    options = HeadOptions(dtype=dtype, block=256, fused_update=fused)
    sgd = SGD(steps=1, learning_rate=1.0, weight_decay=0.01)
    margin = MARGINS.parse(choice)
    head = ShardedHead(
        classes,
        DIM,
        margin,
        group,
        seed=2,
        optimizer=sgd,
        options=options,
        backbone_gradient="summed",
        device=device,
    )
    loss = head(mine, labels[share].to(device), LAMBDA, learning_rate=RATE).loss
    loss.backward()
    assert mine.grad is not None
    found = {"loss": loss.detach(), "x_grad": mine.grad}
    if not fused:
        assert head.weight_SD.grad is not None
        found["w_grad"] = head.weight_SD.grad.clone()
    head.update(RATE)
    found["rows"] = head.weight_SD.detach()
    return {name: value.cpu() for name, value in found.items()}


def dense(choice: dict[str, Any], classes: int) -> dict[str, torch.Tensor]:
    """The same in float64, all logits at once."""
    x, labels = inputs(classes)
    x = x.double().requires_grad_()
    rows = initial_rows(range(classes), DIM, 2).double().requires_grad_()
    loss = dense_loss(x, rows, labels, MARGINS.parse(choice), LAMBDA, seed=2)
    loss.backward()
    assert x.grad is not None and rows.grad is not None
    moved = rows.detach() - RATE * (rows.grad + 0.01 * rows.detach())
    return {"loss": loss.detach(), "x_grad": x.grad, "w_grad": rows.grad, "rows": moved}


def compare(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float) -> None:
    torch.testing.assert_close(got["loss"].double(), want["loss"], rtol=tolerance, atol=1e-6)
    for name in got.keys() - {"loss"}:
        error = (got[name].double() - want[name]).norm() / want[name].norm()
        assert error <= 2 * tolerance, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: ", ".join(map(str, choice.values())))
def test_every_margin_equals_dense_float64(device: torch.device, choice: dict[str, Any], dtype: torch.dtype) -> None:
    for classes in CLASSES:
        want = dense(choice, classes)
        for fused in (False, True):
            # torch's default for float32 products on CUDA is float32, not TF32
            compare(step(device, choice, dtype, classes, fused=fused), want, TOLERANCES[dtype])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_a_step_repeats_bit_for_bit_without_a_switch(device: torch.device, dtype: torch.dtype, fused: bool) -> None:
    first, second = (step(device, {"name": "a_softmax"}, dtype, 1003, fused=fused) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def on_a_rank(
    rank: int, ranks: int, device: str, choice: dict[str, Any], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    share = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    return step(torch.device(device), choice, dtype, 1003, dist.group.WORLD, share)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_two_ranks_on_one_card_equal_dense_float64(device: torch.device, dtype: torch.dtype) -> None:
    """NCCL refuses two ranks on one GPU; gloo carries CUDA tensors."""
    choice = {"name": "a_softmax", "m": 4}
    results = run_ranks(on_a_rank, 2, str(device), choice, dtype)
    assert torch.equal(results[0]["loss"], results[1]["loss"])
    together = {name: torch.cat([result[name] for result in results]) for name in ("x_grad", "w_grad", "rows")}
    compare({"loss": results[0]["loss"], **together}, dense(choice, 1003), TOLERANCES[dtype])


def train(device: torch.device, options: HeadOptions, parts: int, dim: int) -> dict[str, torch.Tensor]:
    """Five steps: the first runs, the second is captured, the rest are replayed."""
    sgd = SGD(steps=5, learning_rate=0.1, weight_decay=5e-4)
    margin = MARGINS.parse("sphereface_r_v2")
    options = replace(options, accumulation=parts)
    head = ShardedHead(1003, dim, margin, seed=2, optimizer=sgd, options=options, device=device)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for number in range(5):
        x = torch.randn(BATCH, dim, generator=generator).to(device)
        labels = torch.randint(-1, 1003, (BATCH,), generator=generator).to(device)
        for x_part, labels_part in zip(x.chunk(parts), labels.chunk(parts), strict=True):
            loss = head(x_part.requires_grad_(), labels_part, step=number, learning_rate=0.1).loss
            (loss / parts).backward()
            losses.append(loss.detach())
        head.update(0.1)
    return {"rows": head.weight_SD.detach(), "momentum": head.slots["momentum"], "losses": torch.stack(losses)}


WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 1),
    "accumulated": ({}, 2),
    "fused": ({"fused_update": True}, 1),
    "sampled": ({"sample_rate": 0.3}, 1),
    "sampled and fused": ({"sample_rate": 0.3, "fused_update": True}, 1),
}


@pytest.mark.parametrize("dim", [64, 96])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=str)
def test_every_option_is_the_block_loops_and_repeats(
    device: torch.device, dtype: torch.dtype, tolerance: float, way: str, dim: int
) -> None:
    chosen, parts = WAYS[way]
    got, again = (train(device, HeadOptions(dtype=dtype, block=512, **chosen), parts, dim) for _ in range(2))
    want = train(device, HeadOptions(kernel=BlockLoop(), **chosen), parts, dim)
    for key, value in want.items():
        assert torch.equal(got[key], again[key])
        error = (got[key] - value).norm() / value.norm()
        assert error <= tolerance, f"{key}: relative error {error:.2e}"
