"""metrics.jsonl with rows of evaluations: each step and each evaluation once, through resume and roll-back."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.in_training import Evaluated
from pipeline.evaluation.scoring.rates import verify
from pipeline.evaluation.scoring.verification import ScoredPairs
from pipeline.training.loop import Record
from pipeline.training.watch import MetricsFile, Progress, Window

RESULT = verify(
    ScoredPairs.of(
        [0.9, 0.1, 0.8, 0.2], [True, False] * 2, [0, 0, 1, 1], identity_a=[0, 0, 1, 1], identity_b=[0, 1, 1, 0]
    ),
    (0.5,),
    2,
)


def record(step: int) -> Record:
    return Record(
        step=step,
        epoch=0.0,
        loss=1.0 / step,
        anneal=5.0,
        learning_rate=0.1,
        own_cosine=0.5,
        norm=1.0,
        gradient_norm=1.0,
        angles=None,
        chance=1.0,
        samples=4,
        seconds=0.1,
        parts={},
        decode_failures=0,
        ready=1,
        sent=(0, 0),
        head_bytes=0,
    )


def evaluated(step: int) -> Evaluated:
    return Evaluated(step, {"lfw": RESULT}, [], {"lfw": RESULT.accuracy.value}, None, 1.5)


def write(metrics: MetricsFile, steps: range) -> None:
    """Steps one after another, an evaluation after every second."""
    window = Window(1)
    for step in steps:
        window.add(record(step))
        metrics.write(record(step), window)
        if step % 2 == 0:
            metrics.write_evaluation(evaluated(step))


def rows(file: Path) -> list[Any]:
    """Steps; a step in a tuple is that of an evaluation."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [(row["step"],) if "evaluation" in row else row["step"] for row in found]


def test_every_step_and_evaluation_stands_once(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write(MetricsFile(file, 0), range(1, 8))
    whole = [1, 2, (2,), 3, 4, (4,), 5, 6, (6,), 7]
    assert rows(file) == whole
    resumed = MetricsFile(file, 4)
    assert rows(file) == [1, 2, (2,), 3, 4], "what was reached at the step gone on from is told again"
    resumed.write_evaluation(evaluated(4))
    write(resumed, range(5, 8))
    assert rows(file) == whole
    write(resumed, range(5, 8))  # rolled back to 4
    assert rows(file) == whole


def test_a_row_holds_what_was_reached(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    MetricsFile(file, 0).write_evaluation(evaluated(2))
    row = json.loads(file.read_text())
    assert row.pop("time") > 1e9
    low, high = RESULT.accuracy.low, RESULT.accuracy.high
    assert np.isfinite([low, high]).all()
    reached = {"accuracy": 1.0, "interval": [low, high], "auc": 1.0, "tar_at_far": {"0.5": 1.0}}
    assert row == {"step": 2, "evaluation": {"lfw": reached}, "evaluation_seconds": 1.5, "evaluation_faults": []}


class Nobody(io.StringIO):
    def flush(self) -> None:
        raise BrokenPipeError


def test_a_run_that_nobody_reads_goes_on() -> None:
    progress = Progress(8, Nobody())
    window = Window(1)
    window.add(record(1))
    progress.show(record(1), window)
    progress.show_evaluation(evaluated(1))
