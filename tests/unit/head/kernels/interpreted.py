"""Runs the Triton kernel on CPU tensors by Triton's interpreter, and prints how far it is from float64, as JSON.

A program of its own: Triton reads ``TRITON_INTERPRET`` when it is imported, once a process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.kernels import FusedUpdate, RowGradient, Scoring, Sink, triton_ops
from pipeline.head.kernels.triton_loop import TritonLoop
from pipeline.head.kernels.triton_tiles import Tiles
from pipeline.head.margins import MARGINS
from pipeline.head.margins.sphereface_r import DividedAngle
from pipeline.optim.rows import Rows
from pipeline.optim.sgd import SGD
from tests.distributed.dense import dense_loss

# Nothing divides anything: D is no power of two, neither samples nor classes are whole tiles, the last block is short.
G, D, S, BLOCK = 21, 24, 75, 32
RATE, MOMENTUM, DECAY, START = 0.1, 0.9, 5e-4, 0.01
TILES = Tiles(samples=16, classes=32, depth=32, product=32)
WARPS = {"plain": None, "warped": DividedAngle(1.5, 20.0, False), "detached": DividedAngle(1.5, 20.0, True)}


class OtherSGD(SGD):
    """Another optimizer than the one that the kernel knows."""


@dataclass(frozen=True)
class Case:
    """What is computed.

    Attributes:
        how: what becomes of the rows' gradient: autograd's, handed over in blocks, an update, or a sum of two passes.
        sampled: only every second row takes part: two blocks of them.
    """

    dtype: torch.dtype = torch.float32
    kind: str = "plain"
    unit: bool = True
    how: str = "autograd"
    sampled: bool = False
    optimizer: type[SGD] = SGD

    @property
    def rows(self) -> torch.Tensor:
        return torch.arange(1, S, 2) if self.sampled else torch.arange(S)


CASES = {
    "plain": Case(),
    "raw rows": Case(unit=False),
    "warped": Case(kind="warped"),
    "detached": Case(kind="detached"),
    "in blocks": Case(how="blocks"),
    "updated": Case(how="update"),
    "updated by another": Case(how="update", optimizer=OtherSGD),
    "summed": Case(how="sum"),
    "sampled, in blocks": Case(how="blocks", sampled=True),
    "sampled, updated": Case(how="update", sampled=True),
    "sampled, summed": Case(how="sum", sampled=True),
    "float16": Case(torch.float16, how="update"),
    "float16, warped": Case(torch.float16, kind="warped"),
}


def inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, rows, targets (some ignored, some several times), and gradients of both results."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(G, D, generator=generator), dim=1) * 20
    weight = torch.randn(S, D, generator=generator) * (0.3 if case.unit else 0.03)
    target = torch.randint(0, len(case.rows), (G,), generator=generator)
    target[3] = target[20] = -1
    target[5] = target[6] = target[11] = target[7]
    grad = torch.rand(G, generator=generator) / G
    grad[3] = 0
    return features, weight, target, grad, torch.randn(G, D, generator=generator) * 0.01


def reference(case: Case) -> dict[str, torch.Tensor]:
    """By float64 and all logits at once."""
    single = inputs(case)
    features, weight, grad, grad_target_rows = (single[number].double() for number in (0, 1, 3, 4))
    target, warp, count = single[2], WARPS[case.kind], len(case.rows)
    features.requires_grad_()
    rows = weight[case.rows].requires_grad_()
    logits = features @ (rows / rows.norm(dim=1, keepdim=True) if case.unit else rows).t()
    if warp is not None:
        cosine = (logits / warp.scale).clamp(-1, 1)
        warped = torch.cos(torch.acos(cosine) / warp.m)
        logits = warp.scale * (cosine + (warped - cosine).detach() if warp.detached else warped)
    own = torch.nn.functional.one_hot(target.clamp(min=0), count).bool() & (target >= 0)[:, None]
    logsumexp = logits.masked_fill(own, -torch.inf).logsumexp(1)
    target_rows = rows[target.clamp(min=0)] * (target >= 0)[:, None]
    torch.autograd.backward([logsumexp, target_rows], [grad, grad_target_rows])
    assert features.grad is not None and rows.grad is not None
    found = {"logsumexp": logsumexp.detach(), "features": features.grad}
    if case.how == "update":
        momentum = torch.full_like(weight, START)
        momentum[case.rows] = MOMENTUM * START + rows.grad + DECAY * weight[case.rows]
        moved = weight.clone()
        moved[case.rows] -= RATE * momentum[case.rows]
        return found | {"rows": moved, "momentum": momentum}
    return found | {"gradient": rows.grad * (2 if case.how == "sum" else 1)}


def compute(case: Case, kernel: TritonLoop) -> dict[str, torch.Tensor]:
    """The same by the kernel."""
    features, weight, target, grad, grad_target_rows = inputs(case)
    features.requires_grad_()
    weight.requires_grad_()
    sgd = case.optimizer(steps=1, learning_rate=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    rows = Rows(weight.detach(), sgd)
    rows.slots["momentum"].fill_(START)
    taken = torch.zeros(len(case.rows), D)
    summed = RowGradient(rows)
    summed.part = len(case.rows) if case.sampled else None

    def take(first: int, part: torch.Tensor) -> None:
        taken[first : first + part.shape[0]] += part

    def update(first: int, part: torch.Tensor) -> None:
        assert case.optimizer is OtherSGD, "the kernel updates by SGD itself"
        rows.update(case.rows[first : first + part.shape[0]], part, RATE)

    sinks = {
        "autograd": None,
        "blocks": Sink(take),
        "update": Sink(update, FusedUpdate(rows, RATE)),
        "sum": Sink(summed.take, summed),
    }
    numbers = case.rows if case.sampled else None
    scoring = Scoring(case.unit, WARPS[case.kind], case.dtype, block=BLOCK)
    for _ in range(2 if case.how == "sum" else 1):
        features.grad = None
        results = kernel.nontarget_logsumexp(features, weight, target, scoring, sinks[case.how], numbers)
        torch.autograd.backward(results, [grad, grad_target_rows])
    assert features.grad is not None
    found = {"logsumexp": results[0].detach(), "features": features.grad}
    if case.how == "update":
        return found | {"rows": weight.detach(), "momentum": rows.slots["momentum"]}
    gradient = {"autograd": lambda: weight.grad, "blocks": lambda: taken, "sum": summed.memory}[case.how]()
    assert gradient is not None
    return found | {"gradient": gradient}


def errors(case: Case) -> dict[str, float]:
    """How far the kernel is from the reference: log-sum-exp absolutely, tensors relative to their norms."""
    wanted = reference(case)
    found, again = (compute(case, TritonLoop(TILES)) for _ in range(2))
    far = {name: ((found[name] - value).norm() / value.norm()).item() for name, value in wanted.items()}
    far["logsumexp"] = (found["logsumexp"] - wanted["logsumexp"]).abs().max().item()
    far["repeats"] = float(all(torch.equal(found[name], again[name]) for name in found))
    return far


def margin_errors(name: str) -> dict[str, float]:
    """Of a head's whole step against the dense one."""
    margin = MARGINS.parse(name)
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(9, 16, generator=generator), torch.randint(-1, 40, (9,), generator=generator)
    options = HeadOptions(block=32, kernel=TritonLoop(TILES))
    head = ShardedHead(40, 16, margin, seed=2, options=options)
    exact, leaf = x.double().requires_grad_(), x.clone().requires_grad_()
    rows = head.weight_SD.detach().double().requires_grad_()
    wanted = dense_loss(exact, rows, labels, margin, 5.0, seed=2)
    loss = head(leaf, labels, 5.0, step=0).loss
    loss.backward()
    wanted.backward()
    far = {"loss": abs(loss.item() / wanted.item() - 1)}
    for key, found, want in (("features", leaf.grad, exact.grad), ("gradient", head.weight_SD.grad, rows.grad)):
        assert found is not None and want is not None
        far[key] = ((found - want).norm() / want.norm()).item()
    return far


class Counted(TorchDispatchMode):
    """Counts torch's operators but those that only make a view."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))


def host_work(classes: int) -> dict[str, float]:
    """What the host queues in a step of kernel and update, once its graphs are captured; and whether they are right."""
    counts = {"programs": 0, "captures": 0, "replays": 0}

    def counted(kernel: Any) -> Any:
        class Launcher:
            def __getitem__(self, grid: Any) -> Callable[..., None]:
                def launch(*args: Any, **keys: Any) -> None:
                    counts["programs"] += 1
                    kernel[grid](*args, **keys)

                return launch

        return Launcher()

    def capture(launches: Callable[[], None]) -> Callable[[], None]:
        counts["captures"] += 1

        def replay() -> None:
            before = counts["programs"], operators.number
            launches()
            counts["replays"] += 1
            counts["programs"], operators.number = before

        return replay

    operators = Counted()
    names = ("normalise", "partial_logsumexp", "softmax", "product", "finish_rows")
    own = {name: getattr(triton_ops, name) for name in names}
    for name, kernel in own.items():
        setattr(triton_ops, name, counted(kernel))
    try:
        generator = torch.Generator().manual_seed(3)
        batches = [(torch.randn(5, D, generator=generator), torch.arange(5) - 1 + step) for step in range(4)]
        results = []
        for kernel in (TritonLoop(TILES), TritonLoop(TILES, capture)):
            rows = torch.nn.Parameter(torch.randn(classes, D, generator=torch.Generator().manual_seed(4)))
            optimizer = Rows(rows, SGD(steps=1, learning_rate=RATE))
            sink = Sink(lambda *_: None, FusedUpdate(optimizer, RATE))
            for x, target in batches:
                leaf = x.clone().requires_grad_()
                counts |= {"programs": 0, "replays": 0}
                operators.number = 0
                with operators:
                    found = kernel.nontarget_logsumexp(leaf, rows, target, Scoring(True, block=BLOCK), sink)
                    torch.autograd.backward(found, [torch.ones(5), torch.zeros(5, D)])
            results.append(rows.detach().clone())
    finally:
        for name, kernel in own.items():
            setattr(triton_ops, name, kernel)
    return counts | {"operators": operators.number, "same": float(torch.equal(*results))}


def main() -> None:
    """Every case, every margin, and the host's work for few and for more classes."""
    found = {name: errors(case) for name, case in CASES.items()}
    found |= {f"margin {name}": margin_errors(name) for name in MARGINS}
    found |= {f"host, {blocks} blocks": host_work(blocks * BLOCK) for blocks in (1, 3)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
