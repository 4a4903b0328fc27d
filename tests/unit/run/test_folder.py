"""The names in a run's folder: as users and old runs know them, and spelled in no other module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pipeline.run.folder import RunFolder
from tests.faces import ROOT

HOME = ROOT / "pipeline" / "run" / "folder.py"
# (A set of shards has an identities.txt of its own.)
NAMES = {"recipe.yaml", "run.json", "metrics.jsonl", "best.json", "evaluations", "identifications", "checkpoints"}
SOURCES = sorted(path for room in ("pipeline", "stages") for path in (ROOT / room).rglob("*.py") if path != HOME)


def test_the_names_are_those_of_runs_of_before() -> None:
    folder = RunFolder(Path("run"))
    files = (folder.recipe, folder.facts, folder.identities, folder.metrics, folder.best)
    assert [file.name for file in files] == ["recipe.yaml", "run.json", "identities.txt", "metrics.jsonl", "best.json"]
    assert folder.checkpoint(1000) == Path("run/checkpoints/step-00001000")
    assert folder.partial(7) == Path("run/checkpoints/step-00000007.partial")
    assert folder.fault(7) == Path("run/faults/step-00000007.json")
    folders = (folder.targets, folder.evaluations, folder.identifications)
    assert [path.name for path in folders] == ["targets", "evaluations", "identifications"]


def test_saved_steps_rise_and_leave_out_what_is_being_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.saved_steps() == []
    for path in (folder.checkpoint(20), folder.checkpoint(100_000_000), folder.checkpoint(3), folder.partial(5)):
        path.mkdir(parents=True)
    assert folder.saved_steps() == [3, 20, 100_000_000]


def names_spelled(source: str) -> set[str]:
    """Operands of ``/`` that are one of the names."""
    found: set[object] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            found.add(node.right.value)
    return {str(name) for name in found & NAMES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_spells_them(path: Path) -> None:
    assert not names_spelled(path.read_text())


def test_the_rule_sees_a_name() -> None:
    assert names_spelled('x = run / "metrics.jsonl"') == {"metrics.jsonl"}
