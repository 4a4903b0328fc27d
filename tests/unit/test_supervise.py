"""What supervise.py refuses before it starts anything: another start would end in the same way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.stop import EXIT_REFUSED, EXIT_STOPPED
from stages import supervise
from tests.faces import write_recipe
from tests.full_disk import FullLog


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("supervise"))


@pytest.fixture
def ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    """The code and the lines on standard error with which it ends, and that it has not come to a launcher."""

    def launcher(*_: object) -> None:
        raise AssertionError("it would have started ranks")

    def run(*options: object) -> tuple[int, list[str]]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(supervise, "Launcher", launcher)
        monkeypatch.setattr(sys, "argv", ["supervise.py", *map(str, options)])
        try:
            code = supervise.main()
        except SystemExit as refused:  # argparse's
            code = int(refused.code or 0)
        return code, capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", 0], "--ranks: got 0, wanted at least 1"),
        (["--ranks", 2, "--min-ranks", 0], "--min-ranks: got 0, wanted at least 1"),
        (["--ranks", 2, "--export", "NCCL_DEBUG"], "--export: got 'NCCL_DEBUG', wanted NAME=VALUE"),
        (["--ranks", 2], "got no arguments of train.py, wanted them after --, such as: --ranks 2 -- --recipe FILE"),
        (["--ranks", 2, "--", "--run", "r"], "the following arguments are required: --recipe"),
    ],
)
def test_options_that_make_no_sense(
    options: Sequence[Any], message: str, ended: Callable[..., tuple[int, list[str]]]
) -> None:
    after = ["--", "--recipe", "r.yaml"] if message.startswith("--") else []
    code, lines = ended(*options, *after)
    assert code == 2 and message in lines[-1]


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (["--ranks", 2], ["data.global_batch=100000"], "data.global_batch: got 100000, wanted at most the "),
        (["--ranks", 8, "--min-ranks", 7], [], "data.global_batch: got 12, wanted a multiple of 7 (7 ranks × "),
        (["--ranks", 2, "--min-ranks", 3], [], "--min-ranks: got 3, wanted at most 2: there are no more ranks"),
    ],
)
def test_what_no_number_of_ranks_would_mend_is_not_tried(
    options: Sequence[Any],
    changes: Sequence[str],
    message: str,
    recipe: Path,
    ended: Callable[..., tuple[int, list[str]]],
) -> None:
    sets = [word for change in changes for word in ("--set", change)]
    code, (line,) = ended(*options, "--", "--recipe", recipe, "--run", "run", *sets)
    assert code == EXIT_REFUSED and line.startswith(f"supervise.py: given up: {message}")


@pytest.mark.parametrize("option", ["--run", "--run-folder"])
def test_the_folder_is_the_one_that_train_takes(recipe: Path, tmp_path: Path, option: str) -> None:
    assert supervise.start_of(["--recipe", str(recipe), option, str(tmp_path), "--resume", "auto"]).run == tmp_path


class Host:
    """Stands in for a launcher with one host that answers, whose ranks are asked to stop at once."""

    stopping = True

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def answering(self) -> set[str]:
        return {"localhost"}

    def run(self, ranks: dict[str, int], port: int) -> int:  # noqa: ARG002 - a launcher's
        return EXIT_STOPPED


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        (4, ["start 1 on localhost (4)"]),
        (
            8,
            [
                "start 1 on localhost (6)",
                "6 of 8 ranks take part: data.global_batch: got 12, wanted a multiple of 8 (8 ranks × accumulation 1)",
            ],
        ),
    ],
)
def test_ranks_that_take_no_part_are_said(
    slots: int,
    said: list[str],
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(supervise, "Launcher", Host)
    options = ["--ranks", str(slots), "--", "--recipe", str(recipe), "--run", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["supervise.py", *options])
    assert supervise.main() == EXIT_STOPPED
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"supervise.py: {line}" for line in [*said, "asked to stop"]]


def test_a_full_disk_under_its_log_does_not_end_it(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "Launcher", Host)
    monkeypatch.setattr(sys, "argv", ["supervise.py", "--ranks", "4", "--", "--recipe", str(recipe), "--run", "run"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stderr", FullLog())
    assert supervise.main() == EXIT_STOPPED
