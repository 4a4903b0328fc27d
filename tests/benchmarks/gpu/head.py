"""The head's whole step on a GPU: against its two floors, and against arcface_torch's head.

Floors: the three bare bf16 products x wᵀ, p w and pᵀ x in the library's kernels; and the bytes that every way must move
(rows read twice, momentum once, both written), at the rate at which this card copies. Peer: `arcface_torch.Head`. Same
embeddings, ArcFace for both; A-Softmax beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.margins import Margin
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.margins.arcface import ArcFace
from pipeline.optim.sgd import SGD
from tests.benchmarks.gpu import arcface_torch
from tests.benchmarks.gpu.timing import Row, free, mebibytes, seconds, tf32

ARCFACE = ArcFace(scale=arcface_torch.SCALE, angle=arcface_torch.ANGLE)


@dataclass(frozen=True)
class Shape:
    """G samples of D numbers, C classes."""

    batch: int
    classes: int
    dim: int = 512

    def __str__(self) -> str:
        return f"G={self.batch} C={self.classes:,} D={self.dim}"


SHAPES = (Shape(512, 200_000), Shape(1024, 1_000_000), Shape(4096, 500_000))


def batch(shape: Shape, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.batch, shape.dim, generator=generator)
    return x.to(device), torch.randint(0, shape.classes, (shape.batch,), generator=generator).to(device)


def products(shape: Shape, device: torch.device) -> Callable[[], None]:
    x = batch(shape, device)[0].bfloat16()
    weight = torch.randn(shape.classes, shape.dim, device=device, dtype=torch.bfloat16)
    logits = torch.empty(shape.batch, shape.classes, device=device, dtype=torch.bfloat16)
    grad_x, grad_w = torch.empty_like(x), torch.empty_like(weight)

    def run() -> None:
        torch.mm(x, weight.t(), out=logits)
        torch.mm(logits, weight, out=grad_x)
        torch.mm(logits.t(), x, out=grad_w)

    return run


def traffic_seconds(shape: Shape, device: torch.device, rounds: int) -> float:
    """Five times the rows' bytes at the rate of a copy, which moves its tensor twice."""
    rows = torch.zeros(shape.classes, shape.dim, device=device)
    other = torch.empty_like(rows)
    return 2.5 * seconds(lambda: other.copy_(rows), device, rounds)


def ours(
    shape: Shape, device: torch.device, margin: Margin, dtype: torch.dtype, fused: bool
) -> Callable[[], torch.Tensor]:
    sgd = SGD(steps=1, learning_rate=1.0, weight_decay=arcface_torch.WEIGHT_DECAY, momentum=arcface_torch.MOMENTUM)
    options = HeadOptions(dtype=dtype, fused_update=fused)
    head = ShardedHead(shape.classes, shape.dim, margin, seed=0, optimizer=sgd, options=options, device=device)
    x, labels = batch(shape, device)

    def run() -> torch.Tensor:
        loss = head(x.clone().requires_grad_(), labels, 5.0, learning_rate=0.1).loss
        loss.backward()
        head.update(0.1)
        return loss.detach()

    return run


def peer(shape: Shape, device: torch.device, allow_tf32: bool) -> Callable[[], torch.Tensor]:
    head = arcface_torch.Head(shape.classes, shape.dim, device)
    step = arcface_torch.head_step(head, *batch(shape, device))

    def run() -> torch.Tensor:
        with tf32(allow_tf32):
            return step()

    return run


def contestants(shape: Shape, device: torch.device) -> dict[str, Callable[[], Callable[[], Any]]]:
    bf16, fp32 = torch.bfloat16, torch.float32
    return {
        "three bare bf16 products": lambda: products(shape, device),
        "arcface_torch, as it is (fp32)": lambda: peer(shape, device, allow_tf32=False),
        "arcface_torch with TF32": lambda: peer(shape, device, allow_tf32=True),
        "spherescale bf16, fused update": lambda: ours(shape, device, ARCFACE, bf16, fused=True),
        "spherescale bf16": lambda: ours(shape, device, ARCFACE, bf16, fused=False),
        "spherescale fp32, fused update": lambda: ours(shape, device, ARCFACE, fp32, fused=True),
        "spherescale bf16, fused update, A-Softmax": lambda: ours(shape, device, ASoftmax(m=4), bf16, fused=True),
    }


def measure(device: torch.device, shapes: tuple[Shape, ...] = SHAPES, rounds: int = 10) -> list[Row]:
    """A row for each contestant and shape: milliseconds, ratios, extra MiB, and the loss of its first step."""
    rows: list[Row] = []
    for shape in shapes:
        traffic = traffic_seconds(shape, device, rounds)
        free(device)
        found: dict[str, dict[str, Any]] = {}
        for name, make in contestants(shape, device).items():
            try:
                run = make()
                first = run()
                found[name] = {
                    "ms": 1e3 * seconds(run, device, rounds),
                    "extra MiB": mebibytes(run, device),
                    "first loss": None if first is None else float(first),
                }
                del run, first
            except torch.OutOfMemoryError:  # of the card; the others are still worth knowing
                found[name] = {"ms": float("nan"), "extra MiB": float("nan")}
            free(device)
        floor = found["three bare bf16 products"]["ms"] + 1e3 * traffic
        as_it_is = found["arcface_torch, as it is (fp32)"]["ms"]
        with_tf32 = found["arcface_torch with TF32"]["ms"]
        rows.append({"head": f"{shape}: the bytes", "ms": 1e3 * traffic, "× both floors": 1e3 * traffic / floor})
        rows += [
            {
                "head": f"{shape}: {name}",
                "ms": values["ms"],
                "× both floors": values["ms"] / floor,
                "× arcface_torch": values["ms"] / as_it_is,
                "× with TF32": values["ms"] / with_tf32,
                "extra MiB": values["extra MiB"],
                "first loss": values.get("first loss"),
            }
            for name, values in found.items()
        ]
    return rows
