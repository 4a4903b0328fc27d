"""Every stage ends in one line and a code: 65 for what it refuses, 74 for a disk that takes nothing, 2 for options."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.stop import EXIT_REFUSED, EXIT_UNSAVED
from pipeline.files import NotWrittenError
from tests.faces import ROOT
from tests.full_disk import no_file_above

# Stage -> options that its parser takes, and the first function of the stage's own module that reads or writes.
STAGES = {
    "align": (["faces", "out"], "open_named"),
    "calibrate": (["--recipe", "r.yaml", "--out", "rates.json"], "load_recipe"),
    "convert_recipe": (["config.py", "r.yaml", "--shards", "s"], "read_config"),
    "demo_faces": (["faces"], "write_faces"),
    "embed": (["run", "faces", "e.parquet"], "list_images"),
    "evaluate": (["run", "--images", "faces", "--pairs", "p.tsv"], "read_set"),
    "export": (["run", "out"], "load_trained"),
    "identify": (["run", "--probes", "p", "--distractors", "d"], "read_faces"),
    "ijb": (["run", "--images", "faces", "--meta", "m"], "sources_of"),
    "import_weights": (["b.pth", "out", "--network", "iresnet50"], "read_published"),
    "label_noise": (["run"], "complete_steps"),
    "overlap": (["run", "faces", "out"], "sources_of"),
    "pairs": (["folder", "faces", "p.tsv"], "folder_rows"),
    "plan": (["--recipe", "r.yaml"], "load_recipe"),
    "publish": (["run"], "load_trained"),
    "report": (["run"], "write_report"),
    "shard": (["faces", "out"], "open_named"),
    "status": (["run"], "runs_in"),
    "study": (["study.yaml"], "load_study"),
    "suite": (["run", "--data", "d"], "load_trained"),
    "synthesise": (["out", "--people", "8", "--images", "4"], "open_rendered"),
}

# Their codes are about more than one start: tests/unit/test_train.py and tests/end_to_end/test_faults_supervisor.py.
APART = {"train", "supervise"}

# They read nothing but what is installed.
WITHOUT_INPUT = {"demo_faces", "synthesise"}

Main = Callable[[], int]


def test_every_stage_is_here() -> None:
    ours = {path.stem for path in (ROOT / "stages").glob("*.py") if "\ndef main() " in path.read_text()}
    assert ours == STAGES.keys() | APART


@pytest.mark.parametrize("stage", sorted(STAGES.keys() | APART))
def test_no_line_of_its_description_has_lost_its_end(stage: str) -> None:
    """A backslash at the end of a line joins it to the next, unless it is written twice."""
    described = importlib.import_module(f"stages.{stage}").__doc__ or ""
    assert described and all(len(line) <= 120 and "      --" not in line.strip() for line in described.splitlines())


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., object]:
    """The code and the lines on standard error of a stage that is called with these options in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # study's are for its own process

    def run(stage: str, *options: object) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", [f"{stage}.py", *map(str, options)])
        main: Main = importlib.import_module(f"stages.{stage}").main
        try:
            code = main()
        except SystemExit as refused:  # argparse's
            code = int(refused.code or 0)
        return code, capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (NotWrittenError(errno.ENOSPC, "not written: No space left on device", "a/b"), EXIT_UNSAVED, "No space left"),
        (NotWrittenError(errno.EROFS, "not written: Read-only file system", "a/b"), EXIT_UNSAVED, "Read-only"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a/b"), EXIT_UNSAVED, "a/b: Disk quota exceeded"),
        (NotWrittenError(errno.ENOTDIR, "not made: Not a directory", "a/b"), EXIT_REFUSED, "a/b: not made"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), EXIT_REFUSED, "a/b: Permission denied"),
    ],
    ids=["full", "read-only", "quota", "a file in the way", "not allowed"],
)
@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_or_path_that_takes_nothing(
    stage: str,
    error: OSError,
    code: int,
    reason: str,
    ended: Callable[..., tuple[int, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options, first = STAGES[stage]

    def fail(*_: object, **__: object) -> None:
        raise error

    module = importlib.import_module(f"stages.{stage}")
    monkeypatch.setattr(module, first, fail)
    if stage == "demo_faces":
        monkeypatch.setattr(module, "orl_folder", Path)
    got, lines = ended(stage, *options)
    assert got == code
    (line,) = lines
    assert line.startswith(f"{stage}: a/b: ") and reason in line


@pytest.mark.parametrize("stage", sorted(STAGES.keys() - WITHOUT_INPUT))
def test_input_that_is_not_there_is_refused(stage: str, ended: Callable[..., tuple[int, list[str]]]) -> None:
    code, lines = ended(stage, *STAGES[stage][0])
    assert code == EXIT_REFUSED
    (line,) = lines
    assert line.startswith(f"{stage}: ")
    assert list(Path().iterdir()) in ([], [Path("out")])


@pytest.mark.parametrize("stage", STAGES)
def test_an_option_that_is_not_there(stage: str, ended: Callable[..., tuple[int, list[str]]]) -> None:
    code, lines = ended(stage, *STAGES[stage][0], "--colour", "red")
    assert code == 2
    assert "unrecognized arguments: --colour red" in lines[-1]


def test_a_full_disk_without_a_stand_in(tmp_path: Path, ended: Callable[..., tuple[int, list[str]]]) -> None:
    """The system's own error on its way through reader, writer and stage."""
    for number in range(8):
        (tmp_path / f"faces/p{number}").mkdir(parents=True)
        for shot in range(4):
            (tmp_path / f"faces/p{number}/{shot}.jpg").write_bytes(b"")
    options = ("folder", "faces", "p.tsv", "--folds", 2, "--size", 6)
    with no_file_above(100):
        code, (line,) = ended("pairs", *options)
    assert (code, line) == (EXIT_UNSAVED, "pairs: p.tsv: not written: File too large")
    assert not (tmp_path / "p.tsv").exists()
    (tmp_path / "p.tsv").mkdir()
    code, (line,) = ended("pairs", *options)
    assert (code, line) == (EXIT_REFUSED, "pairs: p.tsv: not written: Is a directory")


@pytest.mark.parametrize(
    ("stage", "options", "line"),
    [
        ("shard", ["verfy", "set"], "shard: verfy: not found, and no command; did you mean verify?"),
        ("shard", ["megre", "a", "b"], "shard: megre: not found, and no command; did you mean merge?"),
        ("evaluate", ["run", "--device", "gpu"], "evaluate.py: error: argument --device: got 'gpu', wanted one of cpu"),
        (
            "evaluate",
            ["run", "--batch-size", "0"],
            "evaluate.py: error: argument --batch-size: got '0', wanted a whole number of at least 1",
        ),
        (
            "shard",
            ["make", "faces", "out", "--metrics-port", "99999"],
            "shard.py make: error: argument --metrics-port: got '99999', wanted a port: 0 to 65535",
        ),
        (
            "pairs",
            ["folder", "faces", "p.tsv", "--size", "-2"],
            "pairs.py folder: error: argument --size: got '-2', wanted a whole number of at least 1",
        ),
        (
            "align",
            ["photos", "out", "--workers", "0"],
            "align.py: error: argument --workers: got '0', wanted a whole number of at least 1",
        ),
        (
            "convert_recipe",
            ["c.py", "r.yaml", "--shards", "s", "--ranks", "0"],
            "convert_recipe.py: error: --ranks: got 0, wanted at least 1",
        ),
    ],
)
def test_a_slip_is_named_with_what_was_meant(
    ended: Callable[..., tuple[int, list[str]]], stage: str, options: list[str], line: str
) -> None:
    code, lines = ended(stage, *options)
    assert code in (2, EXIT_REFUSED)
    assert lines[-1].startswith(line)


def test_half_of_a_launchers_variables_are_refused(
    ended: Callable[..., tuple[int, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    line = (
        "train.py: WORLD_SIZE: not set, but other variables of deepspeed or torchrun are; wanted all of them, or none "
        "for one rank"
    )
    assert ended("train", "--recipe", "r.yaml") == (EXIT_REFUSED, [line])


@pytest.mark.parametrize("stage", sorted(STAGES.keys() | APART))
def test_a_python_without_the_project_is_told_what_to_do(stage: str) -> None:
    file = ROOT / "stages" / f"{stage}.py"
    done = subprocess.run([sys.executable, "-I", "-S", file], capture_output=True, text=True, check=False)
    line = f"{file}: No module named 'cluster': make install, then source .venv/bin/activate\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_ctrl_c_is_one_line_from_the_first_import_on() -> None:
    program = "import cluster.begin, os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "-c: stopped\n")


def test_any_other_error_is_shown_and_a_package_is_called_by_its_name(tmp_path: Path) -> None:
    # Packages of their own: Python takes a file of the same second and size for the one that it has compiled.
    for package, error, shown in (
        ("hall", "KeyboardInterrupt", "hall: stopped"),
        ("room", "ValueError('odd')", "ValueError: odd"),
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__main__.py").write_text(f"import cluster.begin\nraise {error}\n")
        command = [sys.executable, "-m", package]
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode and done.stderr.splitlines()[-1] == shown
