"""A run's trainer on one of the ranks that `run_ranks` starts."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.ranks.topology import Topology
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


def losses_of(trainer: Trainer, kill_after: int | None = None, draws: int = 0) -> list[float]:
    """Train to the end, while something else draws so many random numbers between two steps.

    Args:
        kill_after: the step after which the process ends as a killed one does, once a save that has begun is written.
    """
    losses = []
    for record in trainer.train():
        losses.append(record.loss)
        torch.rand(draws)
        if record.step == kill_after:
            trainer.saves.saver.wait()
            os._exit(9)
    return losses
