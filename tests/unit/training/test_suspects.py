"""The target angles that a run keeps: they are worth a warning, and no run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from pipeline.reading.order import Order
from pipeline.reading.tars import ShardSet
from pipeline.run.folder import RunFolder
from pipeline.training.step import Outcome, Severity
from pipeline.training.suspects import Suspects
from tests.faces import write_shards

GOOD = Outcome(Severity.GOOD, False, 1.0, torch.full((8,), 0.9), torch.ones(8), torch.ones(8, dtype=torch.bool))


def test_a_file_that_cannot_be_read_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = ShardSet(write_shards(tmp_path, identities=4, images=4))
    order = Order(shards.samples_per_tar, seed=0, global_batch=8)
    suspects = Suspects(tmp_path / "run", shards, order, degrees=75)
    suspects.put(0, GOOD)
    suspects.put(1, GOOD)
    (first,) = RunFolder(tmp_path / "run").cosines.iterdir()
    first.unlink()
    first.mkdir()
    with caplog.at_level(logging.WARNING):
        suspects.put(2, GOOD)
        suspects.put(3, GOOD)  # the last of an epoch: the list is of the one before, too
    assert f"{first}: Is a directory; training continues without its target angles" in caplog.text
