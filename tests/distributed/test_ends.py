"""How a run ends or goes back while a save is under way, and what an error at its end is taken for."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe.schema import Checkpoint, Faults, Recipe
from pipeline.run import saver
from pipeline.run.checkpoint import complete_steps
from pipeline.run.folder import RunFolder
from pipeline.run.saver import Saved
from pipeline.training.guard import NonFiniteError
from pipeline.training.saves import UnsavedError
from tests.distributed.ranks import run_ranks
from tests.distributed.test_faults import BAD, observe, recipe, spoil
from tests.distributed.trainer import trainer_of
from tests.faces import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


def train_beside_a_long_save(
    rank: int, ranks: int, plan: Recipe, run: Path, fails: bool
) -> tuple[list[Saved], list[int], str]:
    """Batch `BAD` goes wrong while a save is being written: the saves that ended, what is there, and the error."""
    saving: Any = saver
    trainer, write, error = trainer_of(rank, ranks, plan, run), saving.write_tensors, ""
    spoil(trainer, "embedding")

    def write_long(path: Path, *arguments: Any) -> Any:
        if path.parent == RunFolder(run).partial(BAD):
            time.sleep(2)
            if fails:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *arguments)

    saving.write_tensors = write_long
    saves = []
    try:
        saves += [record.saved for record in trainer.train() if record.saved]
    except NonFiniteError as stopped:
        error = str(stopped)
    return saves, complete_steps(run), error


def test_a_save_under_way_is_finished_by_a_run_that_ends_and_reported_by_one_that_goes_back(
    shards: Path, tmp_path: Path
) -> None:
    every = Checkpoint(every=BAD)
    plan = recipe(shards, checkpoint=every, faults=Faults(action="stop"))
    for _, steps, error in run_ranks(train_beside_a_long_save, 2, plan, tmp_path / "a", False):
        assert error.startswith(f"step {BAD}: loss nan") and steps == [0, BAD]
    plan = recipe(shards, checkpoint=every, faults=Faults(action="roll_back"))
    for saves, _, _ in run_ranks(train_beside_a_long_save, 2, plan, tmp_path / "b", True):
        assert saves[0].step == BAD and saves[0].error is not None and "No space left on device" in saves[0].error


def observe_unsaved(rank: int, ranks: int, plan: Recipe, run: Path) -> str:
    with pytest.raises(UnsavedError) as caught:
        observe(trainer_of(rank, ranks, plan, run), [])
    return str(caught.value)


def test_an_error_is_not_a_lost_ranks_by_the_name_of_the_folder(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "silent"
    run.mkdir()
    (run / "checkpoints").write_text("mine")
    assert run_ranks(observe_unsaved, 1, recipe(shards), run)[0].startswith(f"{run}: checkpoint of step 0 not written")
