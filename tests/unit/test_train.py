"""What train.py ends with when the disk or the folder takes nothing: one line and a code, in no other way."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from cluster.lease import Holder, leased
from cluster.marks import START_VARIABLE
from cluster.stop import EXIT_REFUSED, EXIT_UNSAVED, code_of
from pipeline.run.status import status_of
from stages import train
from tests.faces import ROOT, write_faces, write_pairs, write_recipe
from tests.warm_stage import run_warm


class LeftError(Exception):
    """In place of the end of this process."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("train"))


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_it(code: int) -> None:
        raise LeftError(code)

    monkeypatch.setattr(train, "leave", raise_it)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def ended(
    recipe: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """The code and the line with which a start on this run ends."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--recipe", str(recipe), "--run", str(run)])
    with pytest.raises(LeftError) as left:
        train.main()
    (line,) = capsys.readouterr().err.splitlines()
    return int(left.value.args[0]), line


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, EXIT_UNSAVED), (errno.EROFS, EXIT_UNSAVED), (errno.EACCES, EXIT_REFUSED)],
)
@pytest.mark.usefixtures("leave")
def test_a_folder_that_takes_nothing(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    got, line = ended(recipe, tmp_path / "run", monkeypatch, capsys)
    assert (got, line) == (code, f"train.py: {tmp_path}/run/claims: not written: {os.strerror(number)}")
    assert code_of(OSError(number, "")) == code


@pytest.mark.usefixtures("leave")
def test_a_file_where_the_folder_should_be(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("mine")
    code, line = ended(recipe, tmp_path / "run", monkeypatch, capsys)
    assert code == EXIT_REFUSED and line.endswith("run/claims: not written: Not a directory")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.usefixtures("leave")
def test_a_folder_that_another_holds(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with leased(tmp_path / "claims", Holder("train me"), print):
        code, line = ended(recipe, tmp_path, monkeypatch, capsys)
    assert code == EXIT_REFUSED
    assert line.startswith(f"train.py: {tmp_path}: held by pid {os.getpid()} on ") and "(train me); wanted one" in line


def test_the_end_names_the_last_checkpoint_and_what_a_finished_run_was_not_trained_with_is_said(
    recipe: Path, tmp_path: Path
) -> None:
    def last_line(*changes: str) -> str:
        sets = [word for change in changes for word in ("--set", change)]
        done = run_warm(ROOT / "stages/train.py", "--recipe", recipe, "--run", tmp_path, *sets)
        assert done.returncode == 0
        return done.stderr.splitlines()[-1]

    steps = "optimizer.steps=2"
    assert last_line(steps) == f"[rank 0] INFO train: finished: step 2, in {tmp_path}/checkpoints/step-00000002"
    nothing = f"train.py: {tmp_path} is finished: 2 steps; nothing to do; to train another, choose a folder with --run"
    assert last_line(steps) == nothing
    changed = last_line("optimizer.steps=1", "optimizer.learning_rate=0.1")
    assert changed.startswith(f"{nothing}; changed since, and not trained: ")
    assert "optimizer.steps: 2 → 1" in changed and "optimizer.learning_rate: 0.02 → 0.1" in changed


def test_a_network_that_cannot_be_built(recipe: Path, tmp_path: Path) -> None:
    """It is first built when the ranks have met, unless a key asks for more."""
    changes = ("--set", "backbone={name: vit_t, mask_ratio: 0.99, patch_size: 16}")
    done = run_warm(ROOT / "stages/train.py", "--recipe", recipe, "--run", tmp_path / "run", *changes)
    assert done.returncode == EXIT_REFUSED
    assert done.stderr.startswith("train.py: backbone.mask_ratio: got 0.99 of ") and done.stderr.count("\n") == 1


def test_a_run_that_must_be_new_is_resumed_by_restarts_of_the_supervisor_that_began_it(
    recipe: Path, tmp_path: Path
) -> None:
    def train_to(step: int, mark: str) -> tuple[int, str]:
        options = ("--recipe", recipe, "--run", tmp_path, "--resume", "never", "--set", f"optimizer.steps={step}")
        done = run_warm(ROOT / "stages/train.py", *options, environment={**os.environ, START_VARIABLE: mark})
        return done.returncode, done.stderr

    assert train_to(1, "one")[0] == 0
    code, said = train_to(2, "one")
    assert code == 0 and f"resumed {tmp_path} at step 1" in said
    for mark in ("two", ""):
        assert train_to(3, mark) == (
            EXIT_REFUSED,
            f"train.py: {tmp_path}: holds checkpoints up to step 2; wanted an empty folder\n",
        )


def test_a_run_beyond_its_last_step_is_evaluated_where_it_stands_and_finished(recipe: Path, tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "faces", identities=4, images=3, seed=9)
    sets = f"evaluation.sets={{strangers: {{images: {faces}, pairs: {write_pairs(faces)}}}}}"

    def train_to(step: int, *changes: str) -> str:
        options = [word for change in (f"optimizer.steps={step}", *changes) for word in ("--set", change)]
        done = run_warm(ROOT / "stages/train.py", "--recipe", recipe, "--run", tmp_path / "run", *options)
        assert done.returncode == 0, done.stderr
        return done.stderr.splitlines()[-1]

    train_to(2)
    finished = f"[rank 0] INFO train: finished: step 2, in {tmp_path}/run/checkpoints/step-00000002"
    assert train_to(1, sets, "evaluation.resamples=10") == finished
    assert (tmp_path / "run/evaluations/strangers/step-00000002.json").is_file()
    assert train_to(1, sets, "evaluation.resamples=10").startswith(f"train.py: {tmp_path}/run is finished: 2 steps")
    assert status_of(tmp_path / "run").state == "finished"
