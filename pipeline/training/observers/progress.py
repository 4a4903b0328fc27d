"""The progress line of a run, and the lines of its log that say how it started and what an evaluation found."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from typing import TYPE_CHECKING, TextIO

from typing_extensions import override

from cluster.progress import duration
from cluster.stopwatch import STARTUP
from pipeline.training.observers.observer import Observer
from pipeline.training.record import Record, Window

if TYPE_CHECKING:
    from pipeline.training.evaluator import Evaluated

logger = logging.getLogger(__name__)


class Progress(Observer):
    """One line that is rewritten on a terminal and repeated, calmly, in a log."""

    def __init__(self, total_steps: int, stream: TextIO = sys.stderr) -> None:
        self._total, self._stream = total_steps, stream
        self._rewrite = stream.isatty()
        self._reached, self._began = "", False

    @override
    def recorded(self, record: Record, window: Window) -> None:
        """After the first step of this process: what lay before it, part by part, which is what a restart costs."""
        if not self._began:
            self._began = True
            STARTUP.done("first step")
            logger.info("first step done after %s", STARTUP)

    @override
    def logged(self, record: Record, window: Window) -> None:
        """Show the step, the numbers and when the run will end."""
        left = (self._total - record.step) * window.step_seconds
        waiting = window.parts.get("data_wait", 0.0) / window.step_seconds
        lambda_ = "" if record.lambda_ is None else f"λ {record.lambda_:.4g}  "
        line = (
            f"step {record.step}/{self._total}  epoch {record.epoch:.2f}  loss {record.loss:.4f}  "
            f"{lambda_}lr {record.learning_rate:.3g}  {window.samples_per_second:,.0f} images/s  "
            f"data wait {waiting:.0%}  {duration(math.ceil(left))} left{self._reached}"
        )
        self._write(f"\r\033[K{line}" if self._rewrite else line + "\n")

    @override
    def evaluated(self, found: Evaluated) -> None:
        """Show what was reached on each set, on a line of its own and at the end of those that follow."""
        self._reached = "".join(f"  {name} {result.accuracy.value:.2%}" for name, result in found.results.items())
        best = f"  (best: step {found.best.step})" if found.best else ""
        line = f"step {found.step}/{self._total}  evaluated{self._reached}{best}  {found.seconds:.1f} s\n"
        self._write(f"\r\033[K{line}" if self._rewrite else line)
        for fault in found.faults:
            logger.warning("step %d: evaluation: %s; training continues", found.step, fault)

    @override
    def ended(self, finished: bool) -> None:
        """End the rewritten line."""
        if self._rewrite:
            self._write("\n")

    def _write(self, text: str) -> None:
        # Not left to the guard of observers: its warning would go to the same terminal, which is closed.
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()
