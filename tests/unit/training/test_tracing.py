"""Chosen steps are traced into the run's folder, with the names of a step's parts; others are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cluster.stopwatch import STEP
from pipeline.run.folder import RunFolder
from pipeline.training.tracing import Tracer


@pytest.fixture(autouse=True)
def measured() -> None:
    STEP.use(torch.device("cpu"))


def take(tracer: Tracer, number: int) -> None:
    """A step of two parts."""
    with tracer.step(number):
        with STEP.part("forward"):
            product = torch.ones(8, 8) @ torch.ones(8, 8)
        with STEP.part("update"):
            product.add_(1)


def names_in(file: Path) -> set[str]:
    return {event.get("name") for event in json.loads(file.read_text())["traceEvents"]}


def test_only_the_chosen_steps_are_traced_with_their_parts(tmp_path: Path) -> None:
    tracer = Tracer((2,), tmp_path, torch.device("cpu"))
    for number in (1, 2, 3):
        take(tracer, number)
    file = RunFolder(tmp_path).trace(2)
    assert list(file.parent.iterdir()) == [file]
    assert {"forward", "update", "aten::mm", "aten::add_"} <= names_in(file)
    assert set(STEP.take()) == {"forward", "update"}


def test_a_disk_that_takes_nothing_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").touch()
    take(Tracer((1,), tmp_path, torch.device("cpu")), 1)
    assert "the trace of the step is lost" in caplog.text


def test_an_error_of_the_step_is_the_steps(tmp_path: Path) -> None:
    tracer = Tracer((1,), tmp_path, torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), tracer.step(1):
        raise ZeroDivisionError
    assert not (tmp_path / "profile").exists()
    take(tracer, 1)
    assert RunFolder(tmp_path).trace(1).is_file()
