"""The whole training step on a GPU: against its floor, and against arcface_torch's loop.

Ours is the trainer itself: it reads, decodes, agrees, records and checks each step. Its peer is arcface_torch's loop,
which is given its images in memory and so reads nothing. The floor is the network in a bare loop plus the three bare
products of the head. IResNet-50, ArcFace, the same batch and classes.
"""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path

import torch

from cluster.ranks.collectives import Group
from tests.benchmarks.gpu import arcface_torch
from tests.benchmarks.gpu.backbones import Case, bare_step, deterministic, peer_of, trainer_of
from tests.benchmarks.gpu.head import Shape, products
from tests.benchmarks.gpu.timing import Row, free, seconds, synchronise
from tests.benchmarks.shards import make_shards_of

CASE, CLASSES = Case("iresnet50"), 100_000


def measure(
    folder: Path,
    device: torch.device,
    group: Group,
    case: Case = CASE,
    classes: int = CLASSES,
    steps: int = 60,
    warmup: int = 15,
) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """A row for each contestant, and the milliseconds of the parts of our step."""
    shards = make_shards_of(folder / "set", classes, 1, case.height, case.width)
    found: dict[str, float] = {}
    parts: dict[str, dict[str, float]] = {}
    for name, asked in (("spherescale", False), ("spherescale, deterministic", True)):
        trainer = trainer_of(case, shards, folder / f"run-{asked}", device, group)
        with deterministic(asked):
            records = trainer.train()
            for _ in range(warmup):
                next(records)
            synchronise(device)
            started = time.perf_counter()
            timed = list(itertools.islice(records, steps))
            synchronise(device)
            found[name] = (time.perf_counter() - started) / steps
            records.close()  # type: ignore[attr-defined]
        names = dict.fromkeys(part for record in timed for part in record.parts)
        parts[name] = {part: 1e3 * statistics.median(record.parts.get(part, 0.0) for record in timed) for part in names}
        del records, timed, trainer
        free(device)
    images = torch.randn(case.batch, 3, case.height, case.width, device=device)
    labels = torch.randint(0, classes, (case.batch,), device=device)
    floor = seconds(bare_step(case, images), device, steps)
    free(device)
    floor += seconds(products(Shape(case.batch, classes, case.dim), device), device, steps)
    free(device)
    head = arcface_torch.Head(classes, case.dim, device)
    peer = arcface_torch.training_step(peer_of(case, device), images, lambda x: head(x, labels), head)
    found["arcface_torch, images in memory"] = seconds(peer, device, steps, warmup)
    torch.backends.cudnn.benchmark = False
    found["the floor: bare network and products"] = floor
    rows: list[Row] = [
        {
            "whole step": f"{case}, {classes:,} identities: {name}",
            "ms": 1e3 * value,
            "images/s": case.batch / value,
            "× floor": value / floor,
            "× arcface_torch": value / found["arcface_torch, images in memory"],
        }
        for name, value in found.items()
    ]
    return rows, parts
