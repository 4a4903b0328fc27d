"""Reading ``metrics.jsonl``, the log that training writes: one JSON object for each logged step."""

from __future__ import annotations

import json
import math
import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.metrics import PERCENTILES

_END_BYTES = 1 << 16  # of the log, in which some records are whole

# What rows were called before they had the names that Prometheus has: a log may begin with such rows.
_RENAMED = {
    "lambda": "margin_lambda",
    "own_cosine": "target_cosine",
    "norm": "embedding_norm",
    "loss_over_chance": "loss_over_chance_ratio",
    "beyond_pi": "margin_angle_beyond_pi_ratio",
    "angle_quantiles": "target_angle_radians",
    "images_per_second": "global_samples_per_second",
    "seconds": "step_part_seconds",
    "decode_failures": "decode_failures_total",
    "checkpoint_seconds": "checkpoint_save_seconds",
}


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The log's records by ascending step; empty if there is no log.

    A line that is no record is skipped, since a crash may tear one. A step that a resumed run went through again
    counts once, as it was the last time. The results of an evaluation (a line of their own) are under ``evaluation`` in
    the record of its step.
    """
    if not file.is_file():
        return []
    records: dict[int, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            record, step = _renamed(record), record["step"]
            if "evaluation" in record:
                records[step] = records.get(step, {}) | record
            else:
                records[step] = record
    return [records[step] for step in sorted(records)]


def last_step(file: Path) -> int:
    """The step of the log's last whole record; 0 if there is none. Of a log, which grows for days, the end is read."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _END_BYTES))
            lines = log.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill, or no record
    return 0


def series(records: list[dict[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of `key` where a record has a finite one, each `[n]`."""
    points = [(record["step"], record[key]) for record in records if _is_finite(record.get(key))]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, np.float64), np.array(values, np.float64)


def mean_seconds(records: list[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds per logged step of each part of the step's time, largest first.

    The first tenth is left out (at least one record, if there are more): it holds compilation and cold caches.
    """
    splits = [r["step_part_seconds"] for r in records if isinstance(r.get("step_part_seconds"), dict)]
    splits = splits[max(1, len(splits) // 10) :] or splits
    sums: dict[str, float] = {}
    for name, value in chain.from_iterable(split.items() for split in splits):
        if _is_finite(value):
            sums[name] = sums.get(name, 0.0) + value
    means = {name: seconds / len(splits) for name, seconds in sums.items()}
    return dict(sorted(means.items(), key=lambda part: (-part[1], part[0])))


def _renamed(record: dict[str, Any]) -> dict[str, Any]:
    renamed = {_RENAMED.get(key, key): value for key, value in record.items()}
    if isinstance(angles := renamed.get("target_angle_radians"), list):
        renamed["target_angle_radians"] = dict(zip(PERCENTILES, angles, strict=True))
    return renamed


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
