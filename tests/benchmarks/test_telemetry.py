"""What telling Prometheus costs a step: microseconds of the loop, and of the scrapes that run beside it."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

import torch

from cluster.ranks.process_group import process_group
from cluster.ranks.topology import Topology
from cluster.telemetry import Telemetry
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.optim.sgd import SGD
from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Data, Recipe
from pipeline.training.loop import Trainer
from pipeline.training.observers.exporter import Exporter
from pipeline.training.record import Window
from tests.benchmarks.results import median_seconds, write
from tests.faces import write_shards

EXPORTS, TENSORS = 1000, 60
SCRAPE_INTERVAL_SECONDS = 5


def test_telemetry(tmp_path: Path) -> None:
    recipe = Recipe(
        data=Data(shards=write_shards(tmp_path), global_batch=12, decode_threads=1),
        backbone=SphereFaceBackbone(name="sphereface4", embedding_dim=8),
        optimizer=SGD(steps=10**6, learning_rate=0.01),
    )
    norms = list(torch.rand(TENSORS))
    os.environ.setdefault("LOCAL_RANK", "0")
    (tmp_path / "run").mkdir()
    with process_group(Topology(), torch.device("cpu"), 60, {}) as together:
        trainer = Trainer(
            recipe, ShardSet(recipe.data.shards), tmp_path / "run", Topology(), together.group, torch.device("cpu")
        )
        records = trainer.train()
        with Telemetry(rank=0, host="here", job="bench", folder=tmp_path) as telemetry:
            exporter = Exporter(telemetry, recipe, tmp_path / "run", Topology(), trainer.head.num_classes)
            window = Window(10)
            port = telemetry.serve(0)
            record = next(records)
            window.add(record)
            seconds = median_seconds(
                {
                    "step": lambda: next(records),
                    "1000 exports": lambda: [exporter.recorded(record, window) for _ in range(EXPORTS)],
                    "1000 norms": lambda: [torch.stack(norms).square().sum() for _ in range(EXPORTS)],
                    "scrape": lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read(),
                },
                rounds=20,
                warmup=3,
            )
        records.close()  # type: ignore[attr-defined]
    each = (seconds["1000 exports"] + seconds["1000 norms"]) / EXPORTS
    write(
        "telemetry",
        {
            "microseconds": {
                "export": seconds["1000 exports"] / EXPORTS * 1e6,
                "norm of the gradient, out of 60 norms that are there anyway": seconds["1000 norms"] / EXPORTS * 1e6,
                "scrape": seconds["scrape"] * 1e6,
            },
            "smallest step there is (SphereFace-4, 12 images of 32 x 32), seconds": seconds["step"],
            "share of that step": each / seconds["step"],
            "share of a step of 0.1 s": each / 0.1,
            f"share of a core for a scrape every {SCRAPE_INTERVAL_SECONDS} s": seconds["scrape"]
            / SCRAPE_INTERVAL_SECONDS,
        },
    )
