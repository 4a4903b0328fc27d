"""The parts of an evaluation lie in layers: each imports those below it, and scoring none of the others."""

import ast
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[3] / "pipeline" / "evaluation"
# Part -> the parts that it may import; what lies beside them joins them.
BELOW: dict[str, set[str]] = {
    "scoring": set(),
    "protocols": {"scoring"},
    "embedding": {"scoring", "protocols"},
    "reports": {"scoring", "protocols", "embedding", "results", "drawn", "study"},
}
FILES = [(part, file) for part in BELOW for file in sorted((ROOM / part).rglob("*.py"))]


def imported(file: Path) -> list[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


@pytest.mark.parametrize(("part", "file"), FILES, ids=lambda value: getattr(value, "stem", value))
def test_a_part_imports_only_those_below_it(part: str, file: Path) -> None:
    for module in imported(file):
        if module.startswith("pipeline.evaluation."):
            assert module.split(".")[2] in BELOW[part] | {part}, f"{file} imports {module}"


@pytest.mark.parametrize("file", [file for part, file in FILES if part == "scoring"], ids=lambda file: file.stem)
def test_scoring_is_pure(file: Path) -> None:
    """Numbers in, numbers out: nothing of the project besides itself, no file and no clock."""
    tree = ast.parse(file.read_text())
    assert all(not module.startswith(("pipeline", "cluster")) or ".scoring" in module for module in imported(file))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not modules & {"os", "io", "time", "shutil", "random"}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "print"}
