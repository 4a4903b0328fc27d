"""The training step of SphereFace-20 against a bare PyTorch loop on a fixed in-memory batch: all that we add.

The bare loop is what is left without us: the same network, a plain A-Softmax head on the same number of classes,
torch's SGD, one batch in memory. Ours decodes, gathers, streams the head, agrees across ranks, times, logs and exports.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.ranks.process_group import process_group
from cluster.ranks.topology import Topology
from cluster.telemetry import Telemetry
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.head.margins import Target
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.optim.sgd import SGD
from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Data, Recipe
from pipeline.training.loop import Trainer
from pipeline.training.observers.exporter import Exporter
from pipeline.training.observers.metrics_file import MetricsFile
from pipeline.training.observers.observer import Observers
from pipeline.training.record import Window
from tests.benchmarks.results import write
from tests.faces import write_shards

BATCH, STEPS, WARMUP, CLASSES, DIM = 16, 10, 2, 40, 512


def bare_loop(device: torch.device) -> Callable[[], None]:
    backbone = SphereFaceBackbone(name="sphereface20", embedding_dim=DIM).build((112, 96)).to(device)
    rows = torch.nn.Parameter(torch.randn(CLASSES, DIM, device=device))
    sgd = torch.optim.SGD([*backbone.parameters(), rows], lr=0.01, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(BATCH, 3, 112, 96, device=device)
    labels = torch.randint(0, CLASSES, (BATCH,), device=device)
    margin = ASoftmax(m=4)

    def step() -> None:
        x = backbone(images)
        logits = x @ torch.nn.functional.normalize(rows).t()
        logits[torch.arange(BATCH), labels] = margin.target_logit(Target(x, rows[labels]), 5.0, {})
        loss = torch.nn.functional.cross_entropy(logits, labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        loss.item()

    return step


@contextmanager
def our_step(folder: Path, device: torch.device, group: dist.ProcessGroup) -> Iterator[Callable[[], None]]:
    shards = write_shards(folder, identities=CLASSES, images=8, height=112, width=96)
    recipe = Recipe(
        data=Data(shards=shards, global_batch=BATCH, decode_threads=1),
        backbone=SphereFaceBackbone(name="sphereface20", embedding_dim=DIM),
        optimizer=SGD(steps=10**6, learning_rate=0.01),
        deterministic=False,
    )
    trainer = Trainer(recipe, ShardSet(shards), folder / "run", Topology(), group, device)
    records = trainer.train()
    window = Window(10)
    telemetry = Telemetry(rank=0, host="here", job="bench")
    exporter = Exporter(telemetry, recipe, folder / "run", Topology(), CLASSES)
    observers = Observers([exporter, MetricsFile(folder / "run" / "metrics.jsonl")], log_every=1)

    def step() -> None:
        record = next(records)
        window.add(record)
        observers.recorded(record, window)

    yield step
    records.close()  # type: ignore[attr-defined]


def test_training_step(tmp_path: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    (tmp_path / "run").mkdir()
    with process_group(Topology(), device, 60, {}) as together, our_step(tmp_path, device, together.group) as ours:
        contestants = {"bare loop": bare_loop(device), "spherescale": ours}
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(WARMUP + STEPS):
            for name, step in contestants.items():
                started = time.perf_counter()
                step()
                if turn >= WARMUP:
                    times[name].append(time.perf_counter() - started)
    # the least time of each: what the work takes when the machine is left alone
    best = {name: min(t) for name, t in times.items()}
    median = {name: sorted(t)[len(t) // 2] for name, t in times.items()}
    write(
        "training_step",
        {
            "seconds_least": best,
            "seconds_median": median,
            "times_bare_loop": {
                "least": best["spherescale"] / best["bare loop"],
                "median": median["spherescale"] / median["bare loop"],
            },
        },
    )
