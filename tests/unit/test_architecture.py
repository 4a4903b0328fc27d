"""The rooms of the project: who may import whom, and where each big dependency lives."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for room in ("pipeline", "cluster", "stages") for p in (ROOT / room).rglob("*.py"))

# Room -> rooms it must never import.
FORBIDDEN = {
    "cluster": {"pipeline", "stages", "tests"},
    "pipeline": {"stages", "tests"},
    "stages": {"stages", "tests"},
}

# The one module of a forbidden room that a room may import: arguments that several commands share.
EXCEPTION = {"stages": "stages.arguments"}

# Dependency -> the only places that may import it.
HOMES = {
    "nvidia": ("pipeline/reading/dali.py",),
    "deepspeed": ("pipeline/training/engine.py",),
    "prometheus_client": ("cluster/telemetry.py",),
    "grafana_foundation_sdk": ("cluster/monitoring/dashboards.py",),
    "fsspec": ("pipeline/shards/stores.py",),
    "jinja2": ("pipeline/evaluation/reports/pages.py", "pipeline/shards/page.py"),
    "matplotlib": ("pipeline/evaluation/reports/plots.py",),
    "mtcnnruntime": ("pipeline/shards/alignment/detector.py",),
    "onnxruntime": ("pipeline/shards/alignment/detector.py", "pipeline/evaluation/embedding/onnx.py"),
    "torch.onnx": ("pipeline/export/onnx.py",),
    "safetensors": ("pipeline/export/onnx.py", "pipeline/evaluation/embedding/weights.py"),
    "pyarrow": ("pipeline/evaluation/embedding/parquet.py", "pipeline/shards/sources/parquet.py"),
    # Pixels in training are DALI's: Pillow is for what is made or looked at before and after.
    "PIL": ("pipeline/shards/", "pipeline/evaluation/reports/hardest.py", "stages/demo_faces.py"),
    "torch.distributed": ("cluster/", "pipeline/run/checkpoint.py"),
    "os.environ": ("cluster/", "stages/"),
}


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "import_module":
            names.update(argument.value for argument in node.args if isinstance(argument, ast.Constant))
    return names


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way_and_dependencies_stay_home(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    own_room = relative.split("/")[0]
    for name in imported_modules(path):
        for room in FORBIDDEN[own_room]:
            allowed = own_room in EXCEPTION and within(name, EXCEPTION[own_room])
            assert allowed or not within(name, room), f"{relative} imports {name}"
        for dependency, homes in HOMES.items():
            if within(name, dependency):
                assert relative.startswith(homes), f"{relative} uses {name}, whose home is {homes}"


def test_the_rule_sees_a_violation(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import os\nfrom stages import train\nvalue = os.environ['X']\nimport_module('nvidia.dali')\n")
    found = imported_modules(bad)
    assert any(within(name, "stages") for name in found)
    assert any(within(name, "os.environ") for name in found)
    assert any(within(name, "nvidia") for name in found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    """`make tree` prints these lines; a package's is its promise."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert len(docstring.partition("\n")[0].split()) >= 4, f"{path}: got docstring {docstring!r}, wanted a sentence"


def test_the_readme_shows_every_folder() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    named = {line.split("/")[0].strip() for line in tree.splitlines() if "/" in line}
    rooms = {"pipeline", "cluster", "stages", "tests"}
    inside = {p.name for room in ("pipeline", "cluster") for p in (ROOT / room).iterdir() if p.is_dir()}
    assert named == rooms | {name for name in inside if not name.startswith("__")}
