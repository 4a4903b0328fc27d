"""What each loss costs against ArcFace: one step of the head, forward, backward and fused update, in one run.

One process, G = 512 samples, D = 512, C = 50,000 classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.margins import MARGINS, Margin
from pipeline.head.margins.arcface import ArcFace
from pipeline.optim.adamw import AdamW
from pipeline.optim.optimizer import Optimizer
from pipeline.optim.sgd import SGD
from tests.benchmarks.results import median_seconds, write

G, D, C, ROUNDS = 512, 512, 50_000, 5


def step_of(margin: Margin, optimizer: Optimizer) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(G, D, generator=generator), torch.randint(0, C, (G,), generator=generator)
    head = ShardedHead(C, D, margin, seed=0, optimizer=optimizer, options=HeadOptions(fused_update=True))

    def run() -> None:
        head(x.clone().requires_grad_(), labels, 5.0, learning_rate=1e-3).loss.backward()
        head.update(1e-3)

    return run


def test_losses_against_arcface() -> None:
    sgd = SGD(steps=1, learning_rate=1.0)
    contestants = {name: step_of(MARGINS.parse(name), sgd) for name in MARGINS if not name.startswith("toy_")}
    contestants["arcface, filter"] = step_of(ArcFace(filter=0.4), sgd)
    contestants["arcface, AdamW"] = step_of(ArcFace(), AdamW(steps=1, learning_rate=1.0))
    seconds = median_seconds(contestants, ROUNDS)
    write("losses", {"seconds": seconds, "times_arcface": {n: s / seconds["arcface"] for n, s in seconds.items()}})
