"""What a run had of the steps that it goes back from is moved, whole, and said; nothing else is touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.evaluation.results import result_file
from pipeline.files import NotWrittenError
from pipeline.run.best import Best, read_best, write_best
from pipeline.run.checkpoint import complete_steps
from pipeline.run.folder import RunFolder
from pipeline.run.set_aside import set_aside
from pipeline.run.whole import damage
from tests.unit.run.saved import save_steps


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def evaluate_steps(run: Path, *steps: int) -> None:
    """Results of two sets and of one set of distractors at these steps, as far as their names go."""
    folder = RunFolder(run)
    for place in (folder.evaluations / "lfw", folder.evaluations / "agedb", folder.identifications / "megaface"):
        place.mkdir(parents=True, exist_ok=True)
        for step in steps:
            result_file(place, step).write_text(f"{place.name} {step}")
            result_file(place, step).with_suffix(".npz").write_text(f"scores {step}")


@pytest.mark.parametrize("best", [5, 15])
def test_all_of_later_steps_is_moved_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, best: int) -> None:
    save_steps(tmp_path, 0, 5, 10, 15)
    evaluate_steps(tmp_path, 5, 10, 15)
    write_best(tmp_path, Best(best, "lfw", 0.9))
    RunFolder(tmp_path).metrics.write_text("the log\n")
    (RunFolder(tmp_path).evaluations / "lfw" / "step-00000015.bak").write_text("mine")
    before = files(tmp_path)

    assert set_aside(tmp_path, 5) == [10, 15]
    left = RunFolder(tmp_path).left / "1"
    assert complete_steps(tmp_path) == [0, 5] and complete_steps(left) == [10, 15]
    assert damage(RunFolder(left).checkpoint(15)) == []
    assert read_best(tmp_path if best == 5 else left) == Best(best, "lfw", 0.9)
    here, there = files(tmp_path), files(left)
    later = {name for name in before if ("step-00000010" in name or "step-00000015" in name) and "bak" not in name}
    assert there.keys() == later | {"metrics.jsonl"} | ({"best.json"} if best == 15 else set())
    assert all(content == before[name] for name, content in there.items())
    assert before.keys() - here.keys() == there.keys() - {"metrics.jsonl"}
    said = f"back to step 5: what was of later steps is in {left}: 2 checkpoints, 12 files of results"
    assert caplog.messages == [f"{tmp_path}: {said}{', best.json' if best == 15 else ''}"]


def test_that_it_is_gone_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_steps(tmp_path, 0, 5, 10)
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    set_aside(tmp_path, 5)
    assert tmp_path in synced


def test_each_time_has_a_folder_and_without_later_steps_there_is_none(tmp_path: Path) -> None:
    save_steps(tmp_path, 0, 5, 10)
    assert set_aside(tmp_path, 10) == []
    assert not RunFolder(tmp_path).left.exists()
    assert set_aside(tmp_path, 5) == [10]
    save_steps(tmp_path, 10)
    evaluate_steps(tmp_path, 10)
    assert set_aside(tmp_path, 5) == [10]
    evaluate_steps(tmp_path, 10)  # as a kill in mid-way would leave them
    assert set_aside(tmp_path, 5) == []
    assert sorted(place.name for place in RunFolder(tmp_path).left.iterdir()) == ["1", "2", "3"]
    assert RunFolder(tmp_path).results_after(0) == []


@pytest.mark.parametrize("most", [6, 7])
def test_a_kill_in_mid_way_leaves_no_gap_among_checkpoints_and_no_result_of_a_lost_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    save_steps(tmp_path, 0, 5, 10, 15)
    evaluate_steps(tmp_path, 15)
    moved: list[Path] = []

    def rename(path: Path, target: Path, real: Callable[[Path, Path], Path] = Path.rename) -> Path:
        if len(moved) == most:
            raise KeyboardInterrupt
        moved.append(path)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        set_aside(tmp_path, 5)
    assert complete_steps(tmp_path) == ([0, 5, 10, 15] if most == 6 else [0, 5, 10])
    assert RunFolder(tmp_path).results_after(5) == []


def test_what_cannot_be_moved_is_named(tmp_path: Path) -> None:
    save_steps(tmp_path, 0, 5)
    RunFolder(tmp_path).left.write_text("mine")
    with pytest.raises(NotWrittenError, match=r"left/1: not made: Not a directory"):
        set_aside(tmp_path, 0)
    assert complete_steps(tmp_path) == [0, 5]
