"""The row of a logged step: its gauges, means over the window, and counters since the process began."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from cluster.metrics import METRICS
from pipeline.training.record import Record, Window, series_of

COUNTERS = {metric.name for metric in METRICS if metric.kind == "counter"}


class Totals:
    """Counters of this process, and the row of a step with them."""

    def __init__(self) -> None:
        self._totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def add(self, record: Record) -> None:
        """Count a step in."""
        for name, label, value in series_of(record.values):
            if name in COUNTERS:
                self._totals[name][label] += value

    def row(self, record: Record, window: Window) -> dict[str, Any]:
        """Every number of the step, by the name of its metric, or a mapping from label to number.

        Means over the window have names of their own if Prometheus does not hold them: ``step_part_seconds``, and
        ``step_seconds``, which there is a histogram.
        """
        means = {
            "global_samples_per_second": window.samples_per_second,
            "step_seconds": window.step_seconds,
            "step_part_seconds": window.parts,
        }
        save = {"checkpoint_save_seconds": record.saved.seconds} if record.saved else {}
        gauges = {name: value for name, value in record.values.items() if name not in COUNTERS}
        counters = {name: by_label.get("", by_label) for name, by_label in self._totals.items()}
        return gauges | means | save | counters
