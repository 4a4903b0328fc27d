"""What shard.py says to somebody who types too little, or asks for what a set does not have."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.stop import EXIT_REFUSED
from stages import shard
from tests.faces import write_shards

Ended = Callable[..., tuple[int, str]]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ended:
    """The code and what is on standard error of the stage with these words."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["shard.py", *map(str, words)])
        try:
            code = shard.main()
        except SystemExit as refused:  # argparse's
            code = int(refused.code or 0)
        return code, capsys.readouterr().err

    return run


def test_without_a_word_every_command_is_shown(ended: Ended) -> None:
    code, said = ended()
    assert code == 2
    assert all(f"\n    {command} " in said for command in shard.COMMANDS)
    assert "shard.py make --help" in said


@pytest.mark.parametrize("size", ["0x0", "112x0", "112", "112x", "112x96x3", "1e2x96"])
def test_a_size_without_pixels_is_refused(size: str, ended: Ended) -> None:
    code, said = ended("faces", "out", "--size", size)
    assert code == 2 and said.endswith(f"got '{size}', wanted HEIGHTxWIDTH such as 112x96\n")


def test_a_recipe_that_is_not_there_is_refused_in_one_line(tmp_path: Path, ended: Ended) -> None:
    shards = write_shards(tmp_path)
    code, said = ended("inspect", shards, tmp_path / "page.html", "--augmented", tmp_path / "absent.yaml")
    assert code == EXIT_REFUSED
    assert said == f"shard: {tmp_path}/absent.yaml: No such file or directory; wanted a recipe file\n"


def test_fewer_people_than_were_asked_for_are_said(tmp_path: Path, ended: Ended) -> None:
    shards = write_shards(tmp_path)
    people = len((shards / "identities.txt").read_text().splitlines())
    assert ended("subset", shards, tmp_path / "some", "--people", people) == (0, "")
    said = f"shard: --people: got {people} people, wanted {people + 1}\n"
    assert ended("subset", shards, tmp_path / "more", "--people", people + 1) == (0, said)
