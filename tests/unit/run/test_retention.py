"""Which checkpoints stay: good ones, and every file that is not the run's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.run import retention
from pipeline.run.checkpoint import BACKBONE, META, complete_steps
from pipeline.run.folder import RunFolder
from pipeline.run.retention import discard, superseded, sweep
from pipeline.run.saver import Saver
from pipeline.run.whole import damage, damage_at_sight, newest_whole
from tests.unit.run.saved import save, save_steps, spoil


def names(run: Path) -> list[str]:
    return sorted(path.name for path in RunFolder(run).checkpoints.iterdir())


def spoil_step(run: Path, step: int) -> None:
    spoil(next(RunFolder(run).checkpoint(step).glob("rows-*")), 4)


def test_doubted_ones_do_not_count_and_go_last() -> None:
    assert superseded([0, 10, 20, 30, 40], 2, None, doubted={30}) == [10]
    assert superseded([0, 10, 20, 30, 40, 50, 60], 2, None, doubted={30}) == [10, 20, 30, 40]
    assert superseded([0, 10, 20, 30], 2, 10, doubted={20}) == []
    assert superseded([0, 10, 20, 30, 40], 1, 10, doubted={20}) == [20], "a damaged one is not kept for good"


def test_damaged_checkpoints_do_not_push_out_good_ones(tmp_path: Path) -> None:
    save_steps(tmp_path, 0, 10, 20, 30, 40)
    for step in (30, 40):
        spoil_step(tmp_path, step)
    saver = Saver(tmp_path, None, 2)
    newest = newest_whole(tmp_path, None)
    assert newest == 20
    saver.resumed(newest)
    save(saver, 25)
    assert complete_steps(tmp_path) == [0, 20, 25, 30, 40]
    assert saver.newest() == 25
    save(saver, 30)  # in place of the damaged one
    assert damage(RunFolder(tmp_path).checkpoint(30)) == []
    assert complete_steps(tmp_path) == [0, 25, 30, 40]
    save(saver, 45)
    assert complete_steps(tmp_path) == [0, 30, 40, 45], "the damaged one is between two good ones"
    save(saver, 50)
    assert complete_steps(tmp_path) == [0, 45, 50]


@pytest.mark.parametrize("how", ["cut", "file gone", "torn meta.json"])
def test_an_older_one_that_is_damaged_at_sight_does_not_count(tmp_path: Path, how: str) -> None:
    save_steps(tmp_path, 0, 10, 20, 30)
    folder = RunFolder(tmp_path).checkpoint(20)
    if how == "cut":
        (folder / BACKBONE).write_bytes(b"")
    else:
        (folder / (META if how == "torn meta.json" else BACKBONE)).unlink()
    if how == "torn meta.json":
        (folder / META).write_text("{")
    saver = Saver(tmp_path, None, 3)
    saver.resumed(30)
    save(saver, 40)
    assert complete_steps(tmp_path) == [0, 10, 20, 30, 40]
    save(saver, 50)
    assert complete_steps(tmp_path) == [0, 30, 40, 50]


def test_no_save_looks_at_more_checkpoints_than_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []

    def look(folder: Path) -> list[str]:
        looked_at.append(folder.name)
        return damage_at_sight(folder)

    save_steps(tmp_path, *range(0, 90, 10))
    saver = Saver(tmp_path, None, 2, keep_every=10)
    monkeypatch.setattr(retention, "damage_at_sight", look)
    save(saver, 90)
    assert looked_at == ["step-00000090", "step-00000080"]


def test_the_newest_the_first_and_every_nth_are_kept(tmp_path: Path) -> None:
    save_steps(tmp_path / "newest", 0, 10, 20, 30, keep=2)
    assert complete_steps(tmp_path / "newest") == [0, 20, 30]
    saver = Saver(tmp_path / "nth", None, keep=2, keep_every=20)
    for step in (0, 10, 20, 30, 40, 50):
        save(saver, step)
    assert complete_steps(tmp_path / "nth") == [0, 20, 40, 50]


def test_a_save_that_drops_nothing(tmp_path: Path) -> None:
    saver = Saver(tmp_path, None, 1)
    save(saver, 1)
    save(saver, 2, drops=False)
    assert complete_steps(tmp_path) == [1, 2]
    save(saver, 3)
    assert complete_steps(tmp_path) == [3]


def test_a_half_written_checkpoint_does_not_exist(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    RunFolder(tmp_path).partial(20).mkdir()
    RunFolder(tmp_path).checkpoint(30).mkdir()  # no meta.json
    assert complete_steps(tmp_path) == [10]


def test_what_an_interrupted_save_left_is_swept_and_a_whole_one_taken(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20)
    folder = RunFolder(tmp_path)
    folder.checkpoint(20).rename(folder.partial(20))  # killed just before the rename
    folder.partial(30).mkdir()
    assert complete_steps(tmp_path) == [10]
    sweep(tmp_path)
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    assert damage(folder.checkpoint(20)) == []


def test_an_interrupted_removal_is_finished_at_the_start_and_at_a_save(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    (RunFolder(tmp_path).checkpoint(1) / META).unlink()
    sweep(tmp_path)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    saver = Saver(tmp_path, None, 9)
    (RunFolder(tmp_path).checkpoint(2) / META).unlink()
    save(saver, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("gone", [META, "backbone.safetensors", "all"])
def test_a_half_removed_step_beside_a_whole_partial_loses_neither(tmp_path: Path, gone: str) -> None:
    save_steps(tmp_path, 1, 2)
    folder = RunFolder(tmp_path)
    shutil.copytree(folder.checkpoint(2), folder.partial(2))
    for file in folder.checkpoint(2).iterdir() if gone == "all" else [folder.checkpoint(2) / gone]:
        file.unlink()
    sweep(tmp_path)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert damage(folder.checkpoint(2)) == []


def test_of_a_step_that_was_saved_twice_the_whole_one_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for spoilt in (folder.partial(2), folder.checkpoint(2)):
        save_steps(tmp_path, 1, 2)
        shutil.copytree(folder.checkpoint(2), folder.partial(2))
        spoil(spoilt / "backbone.safetensors")
        sweep(tmp_path)
        assert names(tmp_path) == ["step-00000001", "step-00000002"]
        assert damage(folder.checkpoint(2)) == []


def test_the_files_of_others_stay_where_they_are(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    folder = RunFolder(tmp_path)
    others = ["step-00000006.bak", "step-6", "mine.partial", "step-00000001.partial.old", "step-x"]
    for name in others:
        (folder.checkpoints / name).mkdir()
    (folder.checkpoints / "step-00000007").write_text("a file")
    for step in (1, 2):
        (folder.checkpoint(step) / "notes.txt").write_text("mine")
    assert complete_steps(tmp_path) == folder.saved_steps() == [1, 2]
    saver = Saver(tmp_path, None, 1)
    save(saver, 3)
    save(saver, 2)  # in the folder that has notes in it
    assert set(others) < set(names(tmp_path))
    assert complete_steps(tmp_path) == [2, 3]
    assert [file.name for file in folder.checkpoint(1).iterdir()] == ["notes.txt"]
    assert damage(folder.checkpoint(2)) == [] and (folder.checkpoint(2) / "notes.txt").read_text() == "mine"
    (folder.checkpoint(3) / f"{META}.0123456789ab.part").touch()
    discard(folder.checkpoint(3))
    assert not folder.checkpoint(3).exists()


def test_a_checkpoint_that_cannot_be_removed_does_not_cost_the_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(tmp_path, None, 1)
    save(saver, 1)

    def refuse(self: Path, *, missing_ok: bool = False) -> None:  # noqa: ARG001
        raise PermissionError(1, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert save(saver, 2).error is None
    assert "step-00000001: not removed: Operation not permitted" in caplog.text
    assert complete_steps(tmp_path) == [1, 2]
