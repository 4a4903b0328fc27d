"""What a run shows while it runs: one progress line, ``metrics.jsonl``, and Prometheus."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cluster.metrics import PERCENTILES
from cluster.telemetry import Telemetry
from pipeline.files import write_file
from pipeline.planning import head_bytes
from pipeline.planning.of_recipe import job_of
from pipeline.recipe.schema import Recipe
from pipeline.training.loop import Record, Trainer

if TYPE_CHECKING:
    from pipeline.evaluation.in_training import Evaluated

logger = logging.getLogger(__name__)


class Window:
    """Means over the last few records, so that the numbers shown are calm."""

    def __init__(self, length: int) -> None:
        self._records: deque[Record] = deque(maxlen=length)

    def add(self, record: Record) -> None:
        """Take one more record in, and the oldest out when full."""
        self._records.append(record)

    @property
    def samples_per_second(self) -> float:
        """Samples a second over all ranks."""
        return sum(r.samples for r in self._records) / self.step_seconds / len(self._records)

    @property
    def step_seconds(self) -> float:
        """Mean seconds a step."""
        return sum(r.seconds for r in self._records) / len(self._records)

    @property
    def parts(self) -> dict[str, float]:
        """Mean seconds a step, by part."""
        names = {name for r in self._records for name in r.parts}
        return {n: sum(r.parts.get(n, 0.0) for r in self._records) / len(self._records) for n in sorted(names)}


class MetricsFile:
    """``metrics.jsonl``: one JSON object a logged step. Rows after the step gone on from are dropped first.

    A disk that is full costs rows, not the run.
    """

    def __init__(self, path: Path, resumed_at: int) -> None:
        self._path, self._last, self._torn = path, resumed_at, False
        # What was reached at the step gone on from is told again.
        self._torn = not self._cut(resumed_at, resumed_at - 1)

    def _cut(self, step: int, evaluated: int) -> bool:
        """Drop steps after `step`, evaluations after `evaluated` and torn rows; whether that could be written."""
        kept = [
            line
            for line in _lines(self._path)
            if (row := _row_of(line)) is not None and row["step"] <= (evaluated if "evaluation" in row else step)
        ]
        text = "".join(line + "\n" for line in kept)
        return self._attempt(lambda: write_file(self._path, text.encode(), synced=False))

    def write(self, record: Record, window: Window) -> None:
        """Append one row; floats keep every digit, so that two runs can be compared bit for bit."""
        if record.step <= self._last or self._torn:  # rolled back, or the disk took half a row
            self._torn = not self._cut(record.step - 1, record.step - 1)
        self._last = record.step
        row = {
            "step": record.step,
            "time": time.time(),
            "epoch": record.epoch,
            "loss": record.loss,
            "lambda": record.anneal,
            "learning_rate": record.learning_rate,
            "own_cosine": record.own_cosine,
            "norm": record.norm,
            "gradient_norm": record.gradient_norm,
            "loss_over_chance": record.chance,
            "angle_quantiles": record.angles.quantiles if record.angles else None,
            "beyond_pi": record.angles.beyond_pi if record.angles else None,
            "images_per_second": window.samples_per_second,
            "step_seconds": window.step_seconds,
            "seconds": window.parts,
            "decode_failures": record.decode_failures,
            "checkpoint_stall_seconds": record.stall_seconds,
            "checkpoint_seconds": record.saved.seconds if record.saved else None,
        }
        self._add(row)

    def write_evaluation(self, found: Evaluated) -> None:
        """Append a row of its own kind: ``evaluation`` by set, beside ``step`` and ``time`` alone."""
        self._last = found.step
        results = {
            name: {
                "accuracy": result.accuracy.value,
                "interval": [result.accuracy.low, result.accuracy.high],
                "auc": result.auc.value,
                "tar_at_far": {f"{entry.far:g}": entry.tar.value for entry in result.tar},
            }
            for name, result in found.results.items()
        }
        row = {"step": found.step, "time": time.time(), "evaluation": results}
        self._add(row | {"evaluation_seconds": found.seconds, "evaluation_faults": found.faults})

    def _add(self, row: dict[str, Any]) -> None:
        if not self._torn:
            self._torn = not self._attempt(lambda: self._append(json.dumps(row) + "\n"))

    def _append(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(line)

    def _attempt(self, work: Callable[[], object]) -> bool:
        try:
            work()
        except OSError as error:
            if not self._torn:  # once, until it works again
                logger.warning("%s: %s; training goes on without its rows", self._path, error.strerror)
            return False
        return True


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _row_of(line: str) -> dict[str, Any] | None:
    """The row; None for the torn last line of a killed run."""
    try:
        row = json.loads(line)
        return row if isinstance(row["step"], int) else None
    except (ValueError, KeyError, TypeError):
        return None


class Progress:
    """One line that is rewritten on a terminal and repeated, calmly, in a log."""

    def __init__(self, total_steps: int, stream: TextIO = sys.stderr) -> None:
        self._total, self._stream = total_steps, stream
        self._rewrite = stream.isatty()
        self._reached = ""

    def show(self, record: Record, window: Window) -> None:
        """Show where the run stands and when it will end."""
        left = (self._total - record.step) * window.step_seconds
        waiting = window.parts.get("data_wait", 0.0) / window.step_seconds
        lambda_ = "" if record.anneal is None else f"λ {record.anneal:.4g}  "
        line = (
            f"step {record.step}/{self._total}  epoch {record.epoch:.2f}  loss {record.loss:.4f}  "
            f"{lambda_}lr {record.learning_rate:.3g}  {window.samples_per_second:,.0f} images/s  "
            f"data wait {waiting:.0%}  {_duration(left)} left{self._reached}"
        )
        self._write(f"\r\033[K{line}" if self._rewrite else line + "\n")

    def show_evaluation(self, found: Evaluated) -> None:
        """Show what was reached on each set, on a line of its own and at the end of those that follow."""
        self._reached = "".join(f"  {name} {result.accuracy.value:.2%}" for name, result in found.results.items())
        best = f"  (best: step {found.best.step})" if found.best else ""
        line = f"step {found.step}/{self._total}  evaluated{self._reached}{best}  {found.seconds:.1f} s\n"
        self._write(f"\r\033[K{line}" if self._rewrite else line)

    def close(self) -> None:
        """End the rewritten line."""
        if self._rewrite:
            self._write("\n")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a reader that goes, or a terminal that closes, does not end the run
            self._stream.write(text)
            self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Exporter:
    """Feeds a rank's records to its Prometheus metrics."""

    def __init__(self, telemetry: Telemetry, trainer: Trainer, restarts: int = 0) -> None:
        self._telemetry, self._num_ranks = telemetry, trainer.topology.num_ranks
        self._decode_failures = 0
        telemetry.set("ranks", self._num_ranks)
        telemetry.set("step", trainer.step)
        telemetry.set("planned_steps", trainer.recipe.optimizer.steps)
        telemetry.set("checkpoint_interval_steps", trainer.recipe.checkpoint.every)
        telemetry.set(
            "head_planned_bytes", planned_head_bytes(trainer.recipe, trainer.head.num_classes, self._num_ranks)
        )
        telemetry.add("restarts_total", restarts)

    def export(self, record: Record) -> None:
        """Set every metric from one step; microseconds."""
        t = self._telemetry
        t.set("step", record.step)
        t.set("position_samples", record.step * record.samples)
        t.set("epoch", record.epoch)
        if record.skipped:
            t.add("skipped_steps_total", 1, record.skipped)
        else:
            t.set("loss", record.loss)
            t.set("target_cosine", record.own_cosine)
            t.set("embedding_norm", record.norm)
            t.set("gradient_norm", record.gradient_norm)
            t.set("loss_over_chance_ratio", record.chance)
        if record.angles is not None:
            t.set("margin_angle_beyond_pi_ratio", record.angles.beyond_pi)
            for percentile, angle in zip(PERCENTILES, record.angles.quantiles, strict=True):
                t.set("target_angle_radians", angle, percentile)
        if record.anneal is not None:
            t.set("margin_lambda", record.anneal)
        t.set("learning_rate", record.learning_rate)
        t.set("prefetched_batches", record.ready)
        t.add("samples_total", record.samples / self._num_ranks)
        t.add("decode_failures_total", record.decode_failures - self._decode_failures)
        self._decode_failures = record.decode_failures
        t.observe("step_seconds", record.seconds)
        t.set("head_held_bytes", record.head_bytes)
        for part, size in zip(("head", "backbone"), record.sent, strict=True):
            t.add("communication_bytes_total", size, part)
        for name, seconds in record.parts.items():
            t.add("step_part_seconds_total", seconds, name)
        if record.stall_seconds is not None:
            t.add("checkpoint_stall_seconds_total", record.stall_seconds)
        if record.saved is not None and record.saved.error is None:
            t.checkpoint_saved(record.saved.seconds)
            t.set("checkpoint_bytes", record.saved.bytes)
        elif record.saved is not None:
            t.add("checkpoint_failures_total")

    def export_evaluation(self, found: Evaluated) -> None:
        """Set what an evaluation reached."""
        t = self._telemetry
        for name, result in found.results.items():
            t.set("evaluation_accuracy_ratio", result.accuracy.value, name)
        for name, accuracy in found.highest.items():
            t.set("evaluation_best_accuracy_ratio", accuracy, name)
        t.add("evaluation_seconds_total", found.seconds)


def planned_head_bytes(recipe: Recipe, num_classes: int, num_ranks: int) -> int:
    """What the planner says that the head of this recipe takes on the fullest of `num_ranks` ranks."""
    return head_bytes(job_of(recipe, num_classes, num_ranks))
