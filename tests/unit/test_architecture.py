"""The rooms of the project: what each may import, and the home of each big dependency."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "cluster", "stages")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Room -> rooms it must never import.
FORBIDDEN = {
    "cluster": {"pipeline", "stages", "tests"},
    "pipeline": {"stages", "tests"},
    "stages": {"stages", "tests"},
}

# The only modules of a forbidden room that a room may import: arguments that several commands share.
EXCEPTION = {"stages": ("stages.arguments", "stages.shard_arguments")}

# Folder -> its folders and modules, the lowest first: each imports only what is on a line above its own.
LAYERS = {
    "pipeline": (
        ("arrays", "files", "hashing", "section"),
        ("shards", "optim", "backbones", "sinks"),
        ("reading", "head", "rendering"),
        ("recipe",),
        ("run", "planning"),
        ("evaluation",),
        ("training", "export"),
    ),
    "cluster": (
        ("algorithms", "cards", "deepspeed_command", "lease", "marks", "metrics", "pace", "ports"),
        ("begin", "goodput", "stop", "stopwatch", "telemetry", "versions"),
        ("progress", "ranks"),
        ("start_ranks",),
        ("supervision",),
        ("monitoring", "preflight"),
    ),
    "pipeline/shards": (
        ("format", "images"),
        ("decode", "workers"),
        ("stores",),
        ("sources",),
        ("alignment", "making"),
        ("views",),
        ("checking",),
    ),
    "pipeline/rendering": (("exact", "variation"), ("people",), ("scene",), ("pixels",), ("photo",), ("sets",)),
}

# Dependency -> the only places that may import it.
HOMES = {
    "nvidia": ("pipeline/reading/dali.py",),
    "deepspeed": ("pipeline/training/engine.py",),
    "prometheus_client": ("cluster/telemetry.py",),
    "grafana_foundation_sdk": ("cluster/monitoring/dashboards.py",),
    "fsspec": ("pipeline/shards/stores/urls.py",),
    "pi_heif": ("pipeline/shards/decode.py",),
    "imagehash": ("pipeline/shards/views/near_copies.py",),
    "torch.utils.tensorboard": ("pipeline/sinks/tensorboard.py",),
    "huggingface_hub": ("pipeline/export/push.py",),
    "wandb": ("pipeline/sinks/wandb.py",),
    "mlflow": ("pipeline/sinks/mlflow.py",),
    "jinja2": ("pipeline/evaluation/reports/pages.py", "pipeline/shards/checking/page.py"),
    "matplotlib": ("pipeline/evaluation/reports/plots.py",),
    "numba": ("pipeline/rendering/exact/compiling.py",),
    "mtcnnruntime": ("pipeline/shards/alignment/detector.py",),
    "onnxruntime": (
        "pipeline/shards/alignment/detector.py",
        "pipeline/evaluation/embedding/onnx.py",
        "pipeline/export/precision.py",
    ),
    "torch.onnx": ("pipeline/export/onnx.py",),
    "safetensors": ("pipeline/export/package.py", "pipeline/evaluation/embedding/weights.py"),
    "pyarrow": ("pipeline/evaluation/embedding/parquet.py", "pipeline/shards/sources/parquet"),
    "scipy": ("pipeline/evaluation/protocols/face_lists.py",),
    # Pixels in training are DALI's: Pillow is for what is made or looked at before and after.
    "PIL": (
        "pipeline/shards/",
        "pipeline/rendering/",
        "pipeline/evaluation/reports/hardest.py",
        "stages/demo_faces.py",
    ),
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
            names.update(str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))
    return names


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_go_one_way_and_dependencies_stay_home(path: Path) -> None:
    file = relative(path)
    own_room = file.split("/")[0]
    for name in imported_modules(path):
        for room in FORBIDDEN[own_room]:
            allowed = any(within(name, module) for module in EXCEPTION.get(own_room, ()))
            assert allowed or not within(name, room), f"{file} imports {name}"
        for dependency, homes in HOMES.items():
            if within(name, dependency):
                assert file.startswith(homes), f"{file} uses {name}, whose home is {homes}"


def test_the_rule_sees_a_violation(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import os\nfrom stages import train\nvalue = os.environ['X']\nimport_module('nvidia.dali')\n")
    found = imported_modules(bad)
    assert any(within(name, "stages") for name in found)
    assert any(within(name, "os.environ") for name in found)
    assert any(within(name, "nvidia") for name in found)


def layer_of(folder: str, name: str) -> int:
    """The layer of what a folder of `LAYERS` holds, by its name."""
    found = [number for number, names in enumerate(LAYERS[folder]) if name in names]
    assert found, f"{folder}/{name}: got no layer, wanted it in LAYERS"
    return found[0]


def inside(folder: str) -> list[Path]:
    return [path for path in SOURCES if relative(path).startswith(f"{folder}/")]


@pytest.mark.parametrize(
    ("folder", "path"),
    [pytest.param(folder, path, id=f"{folder}: {relative(path)}") for folder in LAYERS for path in inside(folder)],
)
def test_folders_import_only_from_lower_layers(folder: str, path: Path) -> None:
    own = path.relative_to(ROOT / folder).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    package = folder.replace("/", ".")
    for name in imported_modules(path):
        other = name.removeprefix(f"{package}.").partition(".")[0]
        if within(name, package) and name != package and other != own:
            assert layer_of(folder, other) < layer_of(folder, own), (
                f"{folder}/{own} imports {name}, whose layer is not below its own"
            )


# Private names that tests may use: of named tuples and of torch's storages, which have no public one.
NOT_OURS = {"_asdict", "_replace", "_fields", "_cdata"}

# Tests that still use private names of the source; to be emptied.
PENDING = {
    "tests/unit/evaluation/scoring/test_angles.py",
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in NOT_OURS


def root_of(node: ast.expr) -> str:
    """The name with which an expression begins: ``a`` of ``a.b(c)[d]``; empty if it begins with no name."""
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return ""
    return node.id


def foreign_names(tree: ast.AST) -> set[str]:
    """Names that are imported from outside the project."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] not in ROOMS:
            names |= {alias.asname or alias.name for alias in node.names}
    return names - set(ROOMS)


def private_uses(source: str) -> list[str]:
    """Private names that a test imports, takes from an object or patches, also in the programs that it has as text."""
    tree = ast.parse(source)
    allowed, found = foreign_names(tree) | {"self", "cls"}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ROOMS:
            found += [f"{node.module}.{alias.name}" for alias in node.names if is_private(alias.name)]
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and root_of(node) not in allowed:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            patched = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            found += [name for name in patched if is_private(name.rpartition(".")[2])]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\nfrom " in node.value:
            found += private_uses(node.value) if is_program(node.value) else []
    return found


def is_program(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


@pytest.mark.parametrize("path", TESTS, ids=relative)
def test_tests_touch_no_private_name(path: Path) -> None:
    found = private_uses(path.read_text())
    assert not found or relative(path) in PENDING, f"{relative(path)}: got {', '.join(found)}, wanted public names"


@pytest.mark.parametrize(
    "source",
    [
        "from cluster.ranks.watchdog import _Peer",
        "from cluster.ranks import watchdog\nwatchdog._BEAT",
        "make().inner[0]._state",
        "monkeypatch.setattr(module, '_BLOCK', 3)",
        "monkeypatch.setattr('pipeline.reading._BLOCK', 3)",
        "PROGRAM = '\\nfrom cluster import stop\\nstop._take'",
    ],
)
def test_the_rule_sees_a_private_name(source: str) -> None:
    assert len(private_uses(source)) == 1
    assert not private_uses("import torch\ntorch._C\nself._own\nrow._replace(a=1)\n'_text'")


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_module_has_a_first_line(path: Path) -> None:
    """`make tree` prints these lines; a package's is its promise."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert len(docstring.partition("\n")[0].split()) >= 4, f"{path}: got docstring {docstring!r}, wanted a sentence"


def test_the_readme_shows_every_folder() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    named = {line.split("/")[0].strip() for line in tree.splitlines() if "/" in line}
    inside = {path.name for room in ("pipeline", "cluster") for path in (ROOT / room).iterdir() if path.is_dir()}
    assert named == {*ROOMS, "tests"} | {name for name in inside if not name.startswith("__")}


def test_make_quick_leaves_out_files_that_are_there() -> None:
    """pytest takes an `--ignore` of a file that was renamed without a word."""
    _, _, rest = (ROOT / "Makefile").read_text().partition("\nSLOW =")
    slow = rest.partition("\n\n")[0].replace("\\", "").split()
    assert len(slow) > 5
    for file in slow:
        assert (ROOT / "tests" / "unit" / file).is_file(), file
