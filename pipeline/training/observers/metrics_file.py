"""``metrics.jsonl``: a JSON object for each logged step and for each evaluation."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from pipeline.files import with_nulls, write_file
from pipeline.training.observers.observer import Observer
from pipeline.training.observers.totals import Totals
from pipeline.training.record import Record, Window

if TYPE_CHECKING:
    from pipeline.training.evaluator import Evaluated


class MetricsFile(Observer):
    """Writes a record's values under the names that Prometheus has for them; those of this rank.

    Gauges are as they were after the step, counters the totals of this process (`Totals`). Floats keep every digit, so
    that two runs can be compared bit for bit; one that is not finite is null, since JSON has no NaN.

    A step stands in the file once: what is after the step resumed from or rolled back to is dropped. If the disk takes
    nothing, rows are lost, and half a row is removed as soon as it can be.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._last, self._torn = path, 0, False
        self._totals = Totals()

    @property
    @override
    def name(self) -> str:
        return str(self._path)

    @override
    def started(self, step: int) -> None:
        self._last = step
        # The step resumed from may be evaluated again.
        self._drop_after(step, evaluated=step - 1)

    @override
    def recorded(self, record: Record, window: Window) -> None:
        self._totals.add(record)

    @override
    def logged(self, record: Record, window: Window) -> None:
        behind, self._last = self._last, record.step
        if record.step <= behind or self._torn:  # rolled back, or the disk took half a row
            self._drop_after(record.step - 1, evaluated=record.step - 1)
        self._append({"step": record.step, "time": time.time()} | self._totals.row(record, window))

    @override
    def evaluated(self, found: Evaluated) -> None:
        """A row of its own kind: ``evaluation`` by set, beside ``step``, ``time`` and how the evaluation went."""
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
        self._append(row | {"evaluation_seconds": found.seconds, "evaluation_faults": found.faults})

    def _drop_after(self, step: int, *, evaluated: int) -> None:
        """Drop steps after `step`, evaluations after `evaluated` and torn rows."""
        self._torn = True  # until it is known to be whole
        kept = [
            line
            for line in _lines(self._path)
            if (row := _row_of(line)) is not None and row["step"] <= (evaluated if "evaluation" in row else step)
        ]
        write_file(self._path, "".join(line + "\n" for line in kept).encode())
        self._torn = False

    def _append(self, row: dict[str, Any]) -> None:
        if self._torn:  # it would be glued to half a row
            return
        self._torn = True
        with self._path.open("a") as file:
            file.write(json.dumps(with_nulls(row), allow_nan=False) + "\n")
        self._torn = False


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _row_of(line: str) -> dict[str, Any] | None:
    """The row; None for the torn last line of a killed run, and for what a power cut left in a row's place."""
    try:
        row = json.loads(line)
        return row if isinstance(row["step"], int) else None
    except (ValueError, KeyError, TypeError):
        return None
