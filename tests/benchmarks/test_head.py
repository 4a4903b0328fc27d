"""The head against its floor (the three bare products) and against the head that `arcface_torch` would run.

One process, G = 512 samples, D = 512, C = 200,000 classes. The peer is written as `arcface_torch` writes it: normalise
the rows, one linear layer, the margin on the logits, softmax cross-entropy, ordinary autograd.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.margins import Target
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.optim.sgd import SGD
from tests.benchmarks.results import median_seconds, write

G, D, C, ROUNDS = 512, 512, 200_000, 5
MARGIN = ASoftmax(m=4)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(G, D, generator=generator), torch.randint(0, C, (G,), generator=generator)


def floor(x: torch.Tensor) -> Callable[[], None]:
    """x wᵀ, p w and pᵀ x, in torch's own products; the logits' memory is theirs to take."""
    weight = torch.randn(C, D)
    logits, grad_x, grad_w = torch.empty(G, C), torch.empty(G, D), torch.empty(C, D)

    def run() -> None:
        torch.mm(x, weight.t(), out=logits)
        torch.mm(logits, weight, out=grad_x)
        torch.mm(logits.t(), x, out=grad_w)

    return run


def ours(x: torch.Tensor, labels: torch.Tensor, options: HeadOptions) -> Callable[[], None]:
    sgd = SGD(steps=1, learning_rate=1.0, weight_decay=0)
    head = ShardedHead(C, D, MARGIN, seed=0, optimizer=sgd, options=options)

    def run() -> None:
        x_GD = x.clone().requires_grad_()
        head(x_GD, labels, 5.0, learning_rate=0.1).loss.backward()
        head.drop()

    return run


def autograd_head(x: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    weight = torch.nn.Parameter(torch.randn(C, D) * 0.01)

    def run() -> None:
        x_GD = x.clone().requires_grad_()
        cosine = F.linear(F.normalize(x_GD), F.normalize(weight)).clamp(-1, 1)
        target = MARGIN.target_logit(Target(x_GD, weight[labels]), 5.0, {})
        logits = (cosine * x_GD.norm(dim=1, keepdim=True)).scatter(1, labels[:, None], target[:, None])
        F.cross_entropy(logits, labels).backward()
        weight.grad = None

    return run


def peak_bytes(run: Callable[[], None]) -> int:
    """Most bytes in tensors during `run` beyond those before it, by torch's profiler."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    now = most = 0
    events: list[Any] = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_head_against_floor_and_peer(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, labels = batch
    contestants = {
        "three bare products": floor(x),
        "spherescale fp32": ours(x, labels, HeadOptions()),
        "spherescale fp32, fused update": ours(x, labels, HeadOptions(fused_update=True)),
        "spherescale bf16": ours(x, labels, HeadOptions(dtype=torch.bfloat16)),
        "autograd head": autograd_head(x, labels),
    }
    seconds = median_seconds(contestants, ROUNDS)
    base, peer = seconds["three bare products"], seconds["autograd head"]
    extra = {name: peak_bytes(run) for name, run in contestants.items() if name != "three bare products"}
    # Beyond the rows' gradient: ours lies there from the first step on, or is never held; the peer makes it anew.
    extra["autograd head"] -= C * D * 4
    write(
        "head",
        {
            "seconds": seconds,
            "times_floor": {name: s / base for name, s in seconds.items()},
            "times_autograd_head": {name: s / peer for name, s in seconds.items()},
            "extra_MiB": {name: e / 2**20 for name, e in extra.items()},
            "memory_times_autograd_head": {name: e / extra["autograd head"] for name, e in extra.items()},
        },
    )
