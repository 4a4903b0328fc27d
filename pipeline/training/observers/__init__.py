"""What watches a run, an observer a file; the list of them is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.run.folder import RunFolder
from pipeline.training.observers.exporter import exporter_of
from pipeline.training.observers.metrics_file import MetricsFile
from pipeline.training.observers.observer import Observer
from pipeline.training.observers.progress import Progress
from pipeline.training.observers.tracker import Tracker

if TYPE_CHECKING:
    from pipeline.training.loop import Trainer


def observers_of(trainer: Trainer, restarts: int) -> list[Observer]:
    """The observers of a trainer's rank, in the order in which they hear an event; `restarts`: starts before this."""
    every_rank: list[Observer] = [
        exporter_of(trainer, restarts),
    ]
    first_rank: list[Observer] = [
        MetricsFile(RunFolder(trainer.run).metrics),
        Progress(trainer.recipe.optimizer.steps),
        *(Tracker(sink, trainer.run, trainer.recipe) for sink in trainer.recipe.log.sinks),
    ]
    return every_rank + (first_rank if trainer.topology.rank == 0 else [])
