"""The progress line in a log, and a stream that nothing reads any more."""

from __future__ import annotations

import io
import logging
from dataclasses import replace

import pytest

from pipeline.training.observers.progress import Progress
from tests.records import evaluated, record, window_of


class Closed(io.StringIO):
    def flush(self) -> None:
        raise BrokenPipeError


def test_lines_show_the_step_and_then_what_was_reached() -> None:
    stream = io.StringIO()
    progress = Progress(9, stream)
    step = record(4, parts={"data_wait": 0.02})
    progress.logged(step, window_of(step))
    progress.evaluated(evaluated(4))
    progress.logged(step, window_of(step))
    progress.ended(True)
    plain = "step 4/9  epoch 0.50  loss 0.2500  λ 5  lr 0.1  40 images/s  data wait 20%  0:00:01 left"
    assert stream.getvalue().splitlines() == [plain, "step 4/9  evaluated  lfw 100.00%  1.5 s", f"{plain}  lfw 100.00%"]


def test_what_failed_of_an_evaluation_is_said(caplog: pytest.LogCaptureFixture) -> None:
    Progress(9, io.StringIO()).evaluated(replace(evaluated(4), faults=["best.json: not written: no room"]))
    assert caplog.messages == ["step 4: evaluation: best.json: not written: no room; training continues"]


def test_the_first_step_of_a_process_says_what_the_start_took(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress(9, io.StringIO())
    with caplog.at_level(logging.INFO):
        for step in (5, 6):
            progress.recorded(record(step), window_of(record(step)))
    (said,) = caplog.messages
    assert said.startswith("first step done after ") and "first step " in said.partition(": ")[2]


def test_a_run_that_nobody_reads_goes_on() -> None:
    progress = Progress(8, Closed())
    progress.logged(record(1), window_of(record(1)))
    progress.evaluated(evaluated(1))
