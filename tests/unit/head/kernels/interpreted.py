"""Runs the Triton kernel on CPU tensors by Triton's interpreter, and prints how far it is from float64, as JSON.

A program of its own: Triton reads ``TRITON_INTERPRET`` when it is imported, once a process.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from pipeline.head.kernels import Scoring, Sink
from pipeline.head.kernels.kernel import FusedUpdate
from pipeline.head.kernels.triton_loop import Tiles, TritonLoop
from pipeline.head.margins.sphereface_r import DividedAngle
from pipeline.optim.rows import RowOptimizer
from pipeline.optim.sgd import SGD

G, D, S, BLOCK = 37, 32, 150, 64  # nothing divides anything, and the last block is not full
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
TILES = Tiles(samples=16, classes=32, depth=16, rows=8, product=16)
WARPS = {"plain": None, "warped": DividedAngle(1.5, 20.0, False), "detached": DividedAngle(1.5, 20.0, True)}


def inputs(unit: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, rows, targets (some ignored, some several times), and gradients of both results."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(G, D, generator=generator), dim=1) * 20
    weight = torch.randn(S, D, generator=generator) * (0.3 if unit else 0.03)
    target = torch.randint(0, S, (G,), generator=generator)
    target[3] = target[20] = -1
    target[5] = target[6] = target[31] = target[7]
    grad = torch.rand(G, generator=generator) / G
    grad[3] = 0
    return features, weight, target, grad, torch.randn(G, D, generator=generator) * 0.01


def reference(unit: bool, warp: DividedAngle | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-sum-exp and both gradients by float64 and all logits at once."""
    single = inputs(unit)
    features, weight, grad, grad_target_rows = (single[number].double() for number in (0, 1, 3, 4))
    target = single[2]
    features.requires_grad_()
    weight.requires_grad_()
    logits = features @ (weight / weight.norm(dim=1, keepdim=True) if unit else weight).t()
    if warp is not None:
        cosine = (logits / warp.scale).clamp(-1, 1)
        warped = torch.cos(torch.acos(cosine) / warp.m)
        logits = warp.scale * (cosine + (warped - cosine).detach() if warp.detached else warped)
    own = torch.nn.functional.one_hot(target.clamp(min=0), S).bool() & (target >= 0)[:, None]
    logsumexp = logits.masked_fill(own, -torch.inf).logsumexp(1)
    target_rows = weight[target.clamp(min=0)] * (target >= 0)[:, None]
    torch.autograd.backward([logsumexp, target_rows], [grad, grad_target_rows])
    assert features.grad is not None and weight.grad is not None
    return logsumexp.detach(), features.grad, weight.grad


def compute(dtype: torch.dtype, unit: bool, warp: DividedAngle | None, how: str) -> dict[str, torch.Tensor]:
    """The same by the kernel; `how` says what becomes of the rows' gradient."""
    features, weight, target, grad, grad_target_rows = inputs(unit)
    features.requires_grad_()
    weight.requires_grad_()
    rows = RowOptimizer(weight.detach(), SGD(steps=1, learning_rate=RATE, momentum=MOMENTUM, weight_decay=DECAY))
    rows.slots["momentum"].fill_(0.5)
    taken = torch.zeros(S, D)

    def take(first: int, part: torch.Tensor) -> None:
        taken[first : first + part.shape[0]] += part

    sinks = {"autograd": None, "blocks": Sink(take), "fused": Sink(take, FusedUpdate(rows, RATE))}
    kernel = TritonLoop(TILES)
    scoring = Scoring(unit, warp, dtype, BLOCK)
    results = kernel.nontarget_logsumexp(features, weight, target, scoring, sinks[how])
    torch.autograd.backward(results, [grad, grad_target_rows])
    assert features.grad is not None
    found = {"logsumexp": results[0].detach(), "features": features.grad}
    if how == "fused":
        return found | {"rows": weight.detach(), "momentum": rows.slots["momentum"], "taken": taken}
    gradient = weight.grad if how == "autograd" else taken
    assert gradient is not None
    return found | {"gradient": gradient}


def errors(dtype: torch.dtype, unit: bool, warp: DividedAngle | None, how: str) -> dict[str, float]:
    """How far the kernel is from the reference: log-sum-exp absolutely, tensors relative to their norms."""
    logsumexp, grad_features, gradient = reference(unit, warp)
    found, again = (compute(dtype, unit, warp, how) for _ in range(2))
    wanted = {"features": grad_features, "gradient": gradient}
    if how == "fused":
        weight = inputs(unit)[1].double()
        momentum = MOMENTUM * 0.5 + gradient + DECAY * weight
        wanted = {"features": grad_features, "momentum": momentum, "rows": weight - RATE * momentum}
    far = {name: ((found[name] - value).norm() / value.norm()).item() for name, value in wanted.items()}
    far["logsumexp"] = (found["logsumexp"] - logsumexp).abs().max().item()
    far["repeats"] = float(all(torch.equal(found[name], again[name]) for name in found))
    far["taken"] = found["taken"].abs().max().item() if how == "fused" else 0.0
    return far


def main() -> None:
    """Every type, margin and way, as a table from name to errors."""
    found = {}
    for type_name in ("float32", "float16"):
        for kind, warp in WARPS.items():
            ways = ("autograd", "blocks", "fused") if kind == "plain" else ("autograd",)
            for how in ways:
                found[f"{type_name} {kind} {how}"] = errors(getattr(torch, type_name), True, warp, how)
        found[f"{type_name} raw rows autograd"] = errors(getattr(torch, type_name), False, None, "autograd")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
