"""A run's trainer on one of the ranks that `run_ranks` starts."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from cluster.topology import Topology
from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Recipe
from pipeline.training.loop import Trainer


def trainer_of(rank: int, ranks: int, plan: Recipe, run: Path, resume: int | None = None) -> Trainer:
    """New, on the CPU and on one host; or resumed from the checkpoint of a step."""
    topology = Topology(rank, ranks, rank, ranks)
    trainer = Trainer(plan, ShardSet(plan.data.shards), run, topology, dist.group.WORLD, torch.device("cpu"))
    if resume is not None:
        trainer.resume(resume)
    return trainer
