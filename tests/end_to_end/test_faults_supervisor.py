"""A supervisor on this machine: what it does not try again, and Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cluster.stop import EXIT_REFUSED, EXIT_STOPPED, EXIT_UNSAVED
from pipeline.run.checkpoint import complete_steps
from pipeline.run.folder import RunFolder
from tests.end_to_end.launcher import metrics, write_recipe
from tests.end_to_end.supervised import Supervised
from tests.faces import write_shards
from tests.fault_table import Row, record

NEVER = 100_000


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


def test_what_train_refuses_is_not_tried_again(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, NEVER)
    RunFolder(run).checkpoint(5).mkdir(parents=True)
    (RunFolder(run).checkpoint(5) / "meta.json").touch()
    (run / "recipe.yaml").write_text("seed: 4\n")
    supervised = Supervised(tmp_path, ["--ranks", "2"], recipe, run)
    assert supervised.end() == EXIT_REFUSED
    assert "train.py: seed: got 5, wanted 4 as in " in supervised.output
    assert supervised.output.count("supervise.py: start ") == 1
    last = supervised.output.splitlines()[-1]
    assert last == "supervise.py: given up: refused, for the reason above; starting again would end the same way"


def test_a_last_save_that_fails_is_told_and_tried_again(shards: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, 4)
    obstacle = RunFolder(tmp_path / "run").partial(4)  # a file, where the save wants a folder
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()
    supervised = Supervised(tmp_path, ["--ranks", "1"], recipe, tmp_path / "run")
    try:
        supervised.wait_for(lambda: "failed with code" in supervised.output)
        obstacle.unlink()
        assert supervised.end() == 0, supervised.output
    finally:
        supervised.stop()
    assert f"supervise.py: failed with code {EXIT_UNSAVED} after step 3; starting again" in supervised.output
    assert "checkpoint of step 4 not written: rank 0 on" in supervised.output
    assert "Mend that; the same command then resumes from the checkpoint of step 0" in supervised.output
    assert complete_steps(supervised.run)[-1] == 4
    done = "a file where the last checkpoint wants its folder, until it was reported"
    outcome = f"exit code {EXIT_UNSAVED}, newest good checkpoint named; supervisor starts again, resumed from there"
    record(Row("Last save fails", done, 4, 0, None, outcome))


def test_ctrl_c_finishes_the_step_and_saves(shards: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, NEVER)
    supervised = Supervised(tmp_path, ["--ranks", "2"], recipe, tmp_path / "run")
    try:
        supervised.wait_for(lambda: supervised.step >= 3)
        ranks = supervised.ranks()
        os.killpg(supervised.process.pid, signal.SIGINT)  # as a terminal does
        assert supervised.end() == EXIT_STOPPED, supervised.output
    finally:
        supervised.stop()
    assert complete_steps(supervised.run)[-1] == metrics(supervised.run)[-1]["step"]
    assert len(ranks) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in ranks)
