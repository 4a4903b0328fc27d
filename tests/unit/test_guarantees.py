"""The tables of guarantees in docs/resume.md: every guarantee says of every path which test holds it to it."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.faces import ROOT

PATHS = ["resume", "init", "evaluate", "export", "supervise", "torchrun", "SphereFace", "IResNet"]
PATHS += [f"ZeRO {stage}" for stage in range(4)]

# What a cell may say that names no test: it does not apply.
WITHOUT = {"–"}

PAGE = (ROOT / "docs" / "resume.md").read_text()
SECTION = PAGE.partition("## What is guaranteed")[2]


def tables() -> dict[str, list[tuple[list[str], str]]]:
    """Guarantee -> rows of paths and cell."""
    found: dict[str, list[tuple[list[str], str]]] = {}
    title = ""
    for line in SECTION.splitlines():
        if heading := re.match(r"\*\*(.+?)\*\*:", line):
            title = heading[1]
            found[title] = []
        elif (row := re.fullmatch(r"\| (.+) \| (.+) \|", line)) and row[1] not in ("path", "---"):
            words = re.sub(r"(?<=, )(\d)", r"ZeRO \1", row[1])
            found[title].append((words.split(", "), row[2]))
    return found


@cache
def names_in(file: str) -> set[str]:
    """The names of a file's test functions; none for a file that is not there."""
    path = ROOT / file
    tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def fault_of(cell: str) -> str:
    """What is wrong with a cell; empty if nothing is."""
    if cell in WITHOUT:
        return ""
    name = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", cell)
    if name is None:
        return f"got {cell!r}, wanted a test's name or one of {sorted(WITHOUT)}"
    return "" if name[2] in names_in(name[1]) else f"{name[1]} has no {name[2]}"


def test_there_are_tables() -> None:
    assert len(tables()) >= 8


@pytest.mark.parametrize("guarantee", tables())
def test_every_path_has_a_cell_and_every_cell_a_test(guarantee: str) -> None:
    rows = tables()[guarantee]
    assert sorted(path for paths, _ in rows for path in paths) == sorted(PATHS)
    assert [fault for _, cell in rows if (fault := fault_of(cell))] == []


def test_the_rule_sees_a_test_that_is_gone() -> None:
    assert fault_of("`tests/unit/test_guarantees.py::test_there_are_tables`") == ""
    assert "has no test_nothing" in fault_of("`tests/unit/test_guarantees.py::test_nothing`")
    assert "has no test_a" in fault_of("`tests/unit/nowhere.py::test_a`")
    assert "wanted a test's name" in fault_of("yes")
