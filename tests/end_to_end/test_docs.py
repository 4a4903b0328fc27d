"""Every command of the documentation is run, in reading order."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.launcher import DEEPSPEED
from tests.faces import ROOT
from tests.ports import free_port
from tests.warm_stage import warm_python

DOCS = ROOT / "docs"
# Each may use what those before it made.
WALK = ("first_run", "data", "rendered", "one_node", "planning", "resume", "evaluation", "moving")

# A block of commands, and the test that runs it if this one cannot: it needs hosts, Slurm or a browser.
BLOCK = re.compile(r"(?:<!-- run by (?P<test>\S+) -->\n+)?```sh\n(?P<commands>.*?)```", re.DOTALL)


def blocks(page: Path) -> list[tuple[str | None, str]]:
    return [(match["test"], match["commands"]) for match in BLOCK.finditer(page.read_text())]


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """The project as a reader has it, with a virtual environment, and a launcher that takes a free port.

    Its python imports torch once for all; the ranks, which the launcher starts, import for themselves.
    """
    for name in ("pipeline", "cluster", "stages", "docs", "Makefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    (tools / "activate").write_text("")
    launcher = tools / "deepspeed"
    launcher.write_text(f'#!/bin/sh\nexec {DEEPSPEED} --master_port {free_port()} "$@"\n')
    launcher.chmod(0o755)
    with warm_python(tools / "python"):
        yield tmp_path


def test_the_walk_through_the_docs(checkout: Path) -> None:
    path = f"{checkout}/.venv/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    for page in WALK:
        for test, commands in blocks(DOCS / f"{page}.md"):
            if test is None:
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", commands],
                    cwd=checkout,
                    env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, f"{page}:\n{commands}\n{done.stdout}\n{done.stderr}"
    assert "Some of its faces" in (checkout / "walk/set.html").read_text()
    assert "<svg" in (checkout / "walk/run/report.html").read_text()


def test_every_other_command_names_the_test_that_runs_it() -> None:
    for page in sorted(DOCS.glob("*.md")):
        for test, commands in blocks(page):
            if page.stem not in WALK:
                assert test is not None, f"{page.name}: no test runs this:\n{commands}"
            if test is not None:
                assert (ROOT / test).is_file(), f"{page.name}: no {test}"


def commands_of(page: Path) -> Iterator[str]:
    """Lines of a page's blocks of commands, or of the examples in a stage's docstring; without what is fed to `cat`."""
    if page.suffix == ".py":
        docstring = ast.get_docstring(ast.parse(page.read_text())) or ""
        yield from re.findall(r"^  ((?:python|deepspeed|torchrun|make) .*)$", docstring, re.MULTILINE)
        return
    for _, commands in blocks(page):
        yield from re.sub(r"<<'END'\n.*?\nEND\n", "\n", commands, flags=re.DOTALL).splitlines()


def test_commands_are_the_same_in_zsh() -> None:
    """zsh takes [ ] ? * ^ # ~ for patterns of files, which must exist, and knows no comments when it is typed to."""
    pages = [*DOCS.glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "stages").glob("*.py")]
    lines = [(page, line) for page in pages for line in commands_of(page)]
    assert len(lines) > 50
    for page, line in lines:
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
        # A pattern of files that are there means the same: those of other trainers' ranks.
        found = re.search(r"[\[\]?*^#~]|(?:^|\s)=", bare.replace("checkpoint_gpu_*.pt", ""))
        assert not found, f"{page.name}: {found and found[0]!r} without quotes: {line}"


def test_every_block_has_a_language() -> None:
    """A block without one could hold a command that no test runs.

    Python is the sketches of extending.md, and the scripts of head.md, which have a test of their own.
    """
    for page in sorted(DOCS.glob("*.md")):
        opening = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)[::2]
        others = {"python"} if page.stem in ("extending", "head") else set()
        assert set(opening) <= {"sh", "yaml", "promql", *others}, page.name


def test_every_link_of_the_docs_has_a_target() -> None:
    for page in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
