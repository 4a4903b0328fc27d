"""metrics.jsonl: each step and each evaluation once, through resume, roll-back and a disk that takes nothing."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.run.saver import Saved
from pipeline.training.observers.metrics_file import MetricsFile
from tests.records import RESULT, evaluated, record, window_of


def started(file: Path, step: int = 0) -> MetricsFile:
    made = MetricsFile(file)
    made.started(step)
    return made


def write(metrics: MetricsFile, steps: range) -> None:
    """Steps one after another, an evaluation after every second."""
    for step in steps:
        metrics.recorded(record(step), window_of(record(step)))
        metrics.logged(record(step), window_of(record(step)))
        if step % 2 == 0:
            metrics.evaluated(evaluated(step))


def rows(file: Path) -> list[Any]:
    """Steps; a step in a tuple is that of an evaluation."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [(row["step"],) if "evaluation" in row else row["step"] for row in found]


def test_every_step_and_evaluation_stands_once(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write(started(file), range(1, 8))
    whole = [1, 2, (2,), 3, 4, (4,), 5, 6, (6,), 7]
    assert rows(file) == whole
    resumed = started(file, 4)
    assert rows(file) == [1, 2, (2,), 3, 4], "the step resumed from is evaluated again"
    resumed.evaluated(evaluated(4))
    write(resumed, range(5, 8))
    assert rows(file) == whole
    write(resumed, range(5, 8))  # rolled back to 4
    assert rows(file) == whole


def test_a_power_cut_costs_the_newest_rows_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, synced = tmp_path / "metrics.jsonl", list[bytes]()
    write(started(file), range(1, 4))
    file.write_bytes(file.read_bytes() + b"\xff\x00\xff\n")
    sync = os.fsync

    def see(descriptor: int) -> None:
        with suppress(OSError):  # a folder
            synced.append(Path(f"/proc/self/fd/{descriptor}").read_bytes())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", see)
    started(file, 3)
    assert rows(file) == [1, 2, (2,), 3]
    assert file.read_bytes() in synced, "it took the place of the rows before it was on the disk"


def test_a_row_has_gauges_totals_and_means_under_their_names_in_prometheus(tmp_path: Path) -> None:
    metrics = started(tmp_path / "metrics.jsonl")
    first = record(1, seconds=0.1, parts={"head": 0.02}, measured={"decode_failures_total": 2}, stall_seconds=0.5)
    second = record(
        2,
        seconds=0.3,
        parts={"head": 0.04},
        measured={
            "target_cosine": 0.5,
            "target_angle_radians": {"p50": 1.25},
            "decode_failures_total": 1,
            "communication_bytes_total": {"head": 6, "backbone": 7},
        },
        saved=Saved(1, 2.5, None, 8),
    )
    for one in (first, second):
        metrics.recorded(one, window_of(one))
    metrics.logged(second, window_of(first, second))
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row.pop("time") > 1e9
    assert row.pop("step_seconds") == pytest.approx(0.2)
    assert row.pop("global_samples_per_second") == pytest.approx(20)
    assert row == {
        "step": 2,
        "epoch": 0.25,
        "position_samples": 8,
        "loss": 0.5,
        "margin_lambda": 5.0,
        "learning_rate": 0.1,
        "target_cosine": 0.5,
        "target_angle_radians": {"p50": 1.25},
        "decode_failures_total": 3,
        "communication_bytes_total": {"head": 6, "backbone": 7},
        "checkpoint_stall_seconds_total": 0.5,
        "checkpoint_save_seconds": 2.5,
        "step_part_seconds_total": {"head": 0.02 + 0.04},
        "step_part_seconds": {"head": 0.03},
    }


def test_a_row_of_an_evaluation_has_what_was_reached(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    started(file).evaluated(evaluated(2))
    row = json.loads(file.read_text())
    assert row.pop("time") > 1e9
    low, high = RESULT.accuracy.low, RESULT.accuracy.high
    assert np.isfinite([low, high]).all()
    reached = {"accuracy": 1.0, "interval": [low, high], "auc": 1.0, "tar_at_far": {"0.5": 1.0}}
    assert row == {"step": 2, "evaluation": {"lfw": reached}, "evaluation_seconds": 1.5, "evaluation_faults": []}


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    one = record(1, measured={"target_cosine": math.nan, "target_angle_radians": {"p50": math.inf}})
    started(file).logged(one, window_of(one))
    assert "NaN" not in file.read_text() and "Infinity" not in file.read_text()
    row = json.loads(file.read_text())
    assert (row["target_cosine"], row["target_angle_radians"]) == (None, {"p50": None})


def test_half_a_row_is_dropped_as_soon_as_the_disk_takes_something(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    metrics = started(file)
    write(metrics, range(1, 4))
    aside = file.rename(tmp_path / "aside")
    file.mkdir()  # which takes no row
    with pytest.raises(IsADirectoryError):
        metrics.logged(record(4), window_of(record(4)))
    with pytest.raises(OSError):  # nor can it be replaced by a file without half a row
        metrics.logged(record(5), window_of(record(5)))
    metrics.evaluated(evaluated(5))  # lost, and not glued to half a row
    file.rmdir()
    aside.rename(file)
    with file.open("a") as torn:
        torn.write('{"step": 5, "lo')
    metrics.logged(record(6), window_of(record(6)))
    assert rows(file) == [1, 2, (2,), 3, 6]
