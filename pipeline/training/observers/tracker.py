"""A tracker of the recipe's ``log.sinks``: fed by a thread of its own, so that no network holds up a step."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from cluster.metrics import PREFIX
from cluster.stop import one_line
from cluster.versions import how_to_install
from pipeline.files import make_folder
from pipeline.recipe.schema import Recipe
from pipeline.run.changes import flat
from pipeline.run.folder import RunFolder
from pipeline.sinks import Sink, Tracked, Writer
from pipeline.training.observers.observer import Observer
from pipeline.training.observers.totals import Totals
from pipeline.training.record import Record, Window, series_of

if TYPE_CHECKING:
    from pipeline.training.evaluator import Evaluated

logger = logging.getLogger(__name__)

# Rows that wait for a slow tracker; with one more, rows are lost until it has caught up.
WAITING = 1000
# How long the end of a run waits for what is left, and for how long at most if the run was stopped.
PATIENCE_SECONDS, HURRY_SECONDS = 60.0, 10.0

Job = Callable[[Writer], None]


class Tracker(Observer):
    """Gives a run's logged steps, evaluations and report to a sink. What fails there is a warning, once.

    Args:
        sink: of the recipe.
        run, recipe: what is tracked.
        patience: seconds that the end of a finished run waits, and of one that was stopped.
    """

    def __init__(
        self,
        sink: Sink,
        run: Path,
        recipe: Recipe,
        patience: tuple[float, float] = (PATIENCE_SECONDS, HURRY_SECONDS),
    ) -> None:
        self._sink, self._run, self._recipe, self._patience = sink, run, recipe, patience
        self._totals, self._step = Totals(), 0
        self._jobs: queue.Queue[Job | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._fails = False

    @property
    @override
    def name(self) -> str:
        return f"log.sinks: {self._sink.name}"

    @override
    def started(self, step: int) -> None:
        """Start the thread, which opens the sink."""
        self._step = step
        keys = flat(self._recipe.model_dump(mode="json"))
        tracked = Tracked(self._run.resolve().name, step, keys, RunFolder(self._run).sink(self._sink.name))
        self._thread = threading.Thread(target=self._work, args=(tracked,), name=self.name, daemon=True)
        self._thread.start()

    @override
    def recorded(self, record: Record, window: Window) -> None:
        self._totals.add(record)
        self._step = record.step

    @override
    def logged(self, record: Record, window: Window) -> None:
        self._scalars(record.step, self._totals.row(record, window))

    @override
    def evaluated(self, found: Evaluated) -> None:
        accuracies = {name: result.accuracy.value for name, result in found.results.items()}
        self._scalars(
            found.step, {"evaluation_accuracy_ratio": accuracies, "evaluation_best_accuracy_ratio": found.highest}
        )

    @override
    def ended(self, finished: bool) -> None:
        """Let the report be kept too, and wait for what is left, but not for ever."""
        if self._thread is None:
            return
        complete = finished and self._step >= self._recipe.optimizer.steps
        deadline = time.monotonic() + self._patience[0 if complete else 1]
        last: list[Job | None] = [lambda writer: writer.close(finished), None]
        for job in [self._keep_report, *last] if complete else last:
            self._put(job, deadline)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            raise TimeoutError("it did not take the last rows in time")

    def _scalars(self, step: int, row: Mapping[str, Any]) -> None:
        values = dict(scalars_of(row))
        self._put(lambda writer: writer.scalars(step, values))

    def _put(self, job: Job | None, deadline: float = 0.0) -> None:
        """Let the thread do a job; if it has ended, nothing. Waits for a place in the queue until the deadline.

        Raises RuntimeError, which is logged once, if the tracker is too far behind.
        """
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._jobs.put(job, timeout=max(0.0, deadline - time.monotonic()))
        except queue.Full:
            raise RuntimeError(f"{WAITING} rows behind; rows are lost") from None

    def _work(self, tracked: Tracked) -> None:
        try:
            make_folder(tracked.folder.parent)
            writer = self._sink.open(tracked)
        except ModuleNotFoundError as error:
            logger.warning("%s: %s, wanted: %s", self.name, error, how_to_install(self._sink.name))
            return
        except Exception as error:
            logger.warning("%s: %s; training continues without it", self.name, _first_line(error))
            return
        while (job := self._jobs.get()) is not None:
            try:
                job(writer)
            except Exception as error:
                if not self._fails:
                    logger.warning("%s: %s; training continues", self.name, _first_line(error))
                self._fails = True
            else:
                self._fails = False

    def _keep_report(self, writer: Writer) -> None:
        if any(RunFolder(self._run).evaluations.glob("*/step-*.json")):
            # Here, since it draws: a run that is not tracked need not wait for that to be imported.
            from pipeline.evaluation.reports.report import write_report  # noqa: PLC0415

            writer.file(write_report([self._run], RunFolder(self._run).report))


def scalars_of(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every finite number of a row under Prometheus' name, a label's value after a slash."""
    for name, label, value in series_of(row):
        if isinstance(value, (int, float)) and math.isfinite(value):
            yield PREFIX + name + (f"/{label}" if label else ""), float(value)


def _first_line(error: Exception) -> str:
    return one_line(error).split("\n", maxsplit=1)[0]
