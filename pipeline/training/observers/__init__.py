"""What watches a run, an observer a file; the list of them is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.goodput import Account
from pipeline.run.folder import RunFolder
from pipeline.training.observers.exporter import exporter_of, telemetry_of
from pipeline.training.observers.goodput import Goodput
from pipeline.training.observers.metrics_file import MetricsFile
from pipeline.training.observers.observer import Observer
from pipeline.training.observers.progress import Progress
from pipeline.training.observers.tracker import Tracker

if TYPE_CHECKING:
    from pipeline.training.loop import Trainer


def observers_of(trainer: Trainer, restarts: int, account: Account) -> list[Observer]:
    """The observers of a trainer's rank, in the order in which they hear an event.

    Args:
        trainer: whose.
        restarts: starts before this.
        account: of the run's wall time before this start.
    """
    telemetry = telemetry_of(trainer)
    first = trainer.topology.rank == 0
    every_rank: list[Observer] = [
        Goodput(account, telemetry, RunFolder(trainer.run).goodput if first else None),
        exporter_of(trainer, telemetry, restarts),
    ]
    first_rank: list[Observer] = [
        MetricsFile(RunFolder(trainer.run).metrics),
        Progress(trainer.recipe.optimizer.steps),
        *(Tracker(sink, trainer.run, trainer.recipe) for sink in trainer.recipe.log.sinks),
    ]
    return every_rank + (first_rank if first else [])
