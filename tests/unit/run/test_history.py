"""A run's past: a line for each start, and a way back to a chosen checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.marks import START_VARIABLE
from pipeline.recipe.schema import Recipe
from pipeline.run.checkpoint import CheckpointError
from pipeline.run.folder import RunFolder
from pipeline.run.history import Begun, has_gone_back, note_start, read_history
from pipeline.shards.format.manifest import Made, Manifest
from pipeline.training.start import Start
from stages.train import step_to_resume
from tests.unit.run.saved import save_steps
from tests.unit.run.test_changes import recipe

MANIFEST = Manifest(4, 2, 112, 96, (), "ab", "cd", 0, Made("faces", "ef", None, 4, "test"))
BEGUN = Begun(0, "train me", "", 2, torch.device("cpu"))


def note(run: Path, begun: Begun, plan: Recipe | None = None) -> None:
    note_start(run, plan or recipe(), MANIFEST, begun)


def test_each_start_is_a_line(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []
    note(tmp_path, BEGUN)
    note(tmp_path, replace(BEGUN, step=5, changes=["optimizer.steps: 10 → 20"], num_ranks=3), recipe(steps=20))
    first, second = read_history(tmp_path)
    assert (first["command"], first["step"], first["ranks"], first["changes"]) == ("train me", 0, 2, [])
    assert first["shards_sha256"] == second["shards_sha256"] == MANIFEST.digest
    assert first["threads"] == torch.get_num_threads() and first["device"].startswith("cpu (")
    assert "torch" in first["versions"] and len(first["code"]) == 12
    assert (second["step"], second["ranks"], second["changes"]) == (5, 3, ["optimizer.steps: 10 → 20"])
    assert first["recipe_sha256"] != second["recipe_sha256"]


def test_a_line_that_a_kill_tore_is_left_out_and_the_next_is_whole(tmp_path: Path) -> None:
    note(tmp_path, BEGUN)
    file = RunFolder(tmp_path).history
    file.write_bytes(file.read_bytes() + b'{"time": "20')
    note(tmp_path, replace(BEGUN, step=7))
    assert [line["step"] for line in read_history(tmp_path)] == [0, 7]


def test_a_start_goes_back_once_for_all_restarts_of_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(START_VARIABLE, "one")
    save_steps(tmp_path, 0, 5, 10)
    start = Start(recipe(), None, [], tmp_path, 5)  # type: ignore[arg-type]  # the shards are not looked at
    assert not start.is_finished
    assert step_to_resume(replace(start, from_step=None), None) == (10, [])
    with pytest.raises(CheckpointError, match=r"got step 7, wanted one of \[0, 5, 10\]"):
        step_to_resume(replace(start, from_step=7), None)
    assert step_to_resume(start, None) == (5, [10])
    note(tmp_path, replace(BEGUN, mark="one", from_step=5))
    save_steps(tmp_path, 8)
    assert step_to_resume(start, None) == (8, []), "a restart went back again"
    assert has_gone_back(tmp_path, 5, "one") and not has_gone_back(tmp_path, 5, "two")
    monkeypatch.setenv(START_VARIABLE, "two")
    assert step_to_resume(start, None) == (5, [8])
    assert not has_gone_back(tmp_path, 5, ""), "each command that is typed goes back"
