"""What a run shows while it runs: one progress line, ``metrics.jsonl``, and Prometheus."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from pathlib import Path
from typing import TextIO

from cluster.telemetry import Telemetry
from pipeline.training.loop import Record


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
    """``metrics.jsonl``: one JSON object a logged step. Rows after the step resumed from are dropped first."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        kept = [line for line in _lines(path) if _step_of(line) is not None and _step_of(line) <= resumed_at]  # type: ignore[operator]
        path.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1)

    def write(self, record: Record, window: Window) -> None:
        """Append one row; floats keep every digit, so that two runs can be compared bit for bit."""
        row = {
            "step": record.step,
            "time": time.time(),
            "epoch": record.epoch,
            "loss": record.loss,
            "lambda": record.anneal,
            "learning_rate": record.learning_rate,
            "own_cosine": record.own_cosine,
            "norm": record.norm,
            "images_per_second": window.samples_per_second,
            "step_seconds": window.step_seconds,
            "seconds": window.parts,
            "decode_failures": record.decode_failures,
            "checkpoint_seconds": record.saved_seconds,
        }
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Close the file; every row was flushed when it was written."""
        self._file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _step_of(line: str) -> int | None:
    """The row's step; None for the torn last line of a killed run."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return None


class Progress:
    """One line that is rewritten on a terminal and repeated, calmly, in a log."""

    def __init__(self, total_steps: int, stream: TextIO = sys.stderr) -> None:
        self._total, self._stream = total_steps, stream
        self._rewrite = stream.isatty()

    def show(self, record: Record, window: Window) -> None:
        """Show where the run stands and when it will end."""
        left = (self._total - record.step) * window.step_seconds
        waiting = window.parts.get("data_wait", 0.0) / window.step_seconds
        line = (
            f"step {record.step}/{self._total}  epoch {record.epoch:.2f}  loss {record.loss:.4f}  "
            f"λ {record.anneal:.4g}  lr {record.learning_rate:.3g}  {window.samples_per_second:,.0f} images/s  "
            f"data wait {waiting:.0%}  {_duration(left)} left"
        )
        self._stream.write(f"\r\033[K{line}" if self._rewrite else line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End the rewritten line."""
        if self._rewrite:
            self._stream.write("\n")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Exporter:
    """Feeds a rank's records to its Prometheus metrics."""

    def __init__(self, telemetry: Telemetry, num_ranks: int, checkpoint_every: int) -> None:
        self._telemetry, self._num_ranks = telemetry, num_ranks
        self._decode_failures = 0
        telemetry.set("ranks", num_ranks)
        telemetry.set("checkpoint_interval_steps", checkpoint_every)

    def export(self, record: Record, window: Window) -> None:
        """Set every metric from one step; microseconds."""
        t = self._telemetry
        t.set("step", record.step)
        t.set("epoch", record.epoch)
        t.set("loss", record.loss)
        t.set("margin_lambda", record.anneal)
        t.set("learning_rate", record.learning_rate)
        t.set("global_samples_per_second", window.samples_per_second)
        t.set("rank_samples_per_second", window.samples_per_second / self._num_ranks)
        t.set("prefetch_batches", record.ready)
        t.add("samples_total", record.samples / self._num_ranks)
        t.add("decode_failures_total", record.decode_failures - self._decode_failures)
        self._decode_failures = record.decode_failures
        t.observe("step_seconds", record.seconds)
        for name, seconds in record.parts.items():
            t.add("step_part_seconds_total", seconds, name)
        if record.saved_seconds is not None:
            t.checkpoint_saved(record.saved_seconds)
