"""What messages of training advise: the recipe's keys, the options and the files that they name are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.optim.sgd import SGD
from pipeline.recipe.schema import Data, Recipe
from pipeline.run.changes import flat
from tests.warm_stage import run_warm

ROOT = Path(__file__).parents[3]
SOURCES = sorted(
    [
        *(ROOT / "pipeline" / "training").rglob("*.py"),
        *(ROOT / "pipeline" / "run").glob("*.py"),
        *(ROOT / "pipeline" / "evaluation").glob("*.py"),
        *(ROOT / "pipeline" / "recipe").glob("schema.py"),
        *(ROOT / "pipeline" / "head").rglob("health.py"),
        *(ROOT / "stages").glob("train.py"),
        *(ROOT / "stages").glob("supervise.py"),
    ]
)
SECTIONS = "data|backbone|head|optimizer|checkpoint|faults|init|log|evaluation"
RECIPE = Recipe(
    data=Data(shards=Path("s"), global_batch=1),
    backbone=SphereFaceBackbone(name="sphereface4"),
    optimizer=SGD(steps=1, learning_rate=0.1),
)
KEYS = set(flat(RECIPE.model_dump(mode="json"))) | {"evaluation.sets", "head.margin"}  # empty by default; a section

FILES = {"backbone.safetensors"}  # beside them, what looks like a key and is none


def texts(source: str) -> Iterator[str]:
    """The pieces of text that a program can print: its strings and those within f-strings, without docstrings.

    A space stands before and a mark after each piece of an f-string, so that a key that is put together is none.
    """
    tree = ast.parse(source)
    parts: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts.update(id(value) for value in node.values)
            yield "".join(value.value if isinstance(value, ast.Constant) else "\0" for value in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            parts.add(id(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def keys_in(text: str) -> set[str]:
    """Keys of a recipe that a text names whole."""
    return set(re.findall(rf"(?<![\w./])(?:{SECTIONS})(?:\.[a-z_]+)+(?![\w\0/])", text)) - FILES


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_keys_and_stages_that_messages_name_are_there(file: Path) -> None:
    for text in texts(file.read_text()):
        assert keys_in(text) <= KEYS, text
        for stage in re.findall(r"stages/[\w/]+\.(?:py|yaml)", text):
            assert (ROOT / stage).is_file(), text


def test_the_advice_is_seen() -> None:
    every = "\n".join(text for file in SOURCES for text in texts(file.read_text()))
    advised = {
        "optimizer.learning_rate",
        "optimizer.warmup_steps",
        "faults.limit",
        "head.margin.lambda_max",
        "head.phases",
    }
    assert advised <= keys_in(every)
    assert "--run" in options_in(every)
    assert keys_in("raise optimizer.rate, or log.metrics_\0") == {"optimizer.rate"}


@pytest.mark.parametrize("stage", ["train.py", "supervise.py"])
def test_options_that_the_help_of_a_stage_names_are_its_own(stage: str) -> None:
    def help_of(name: str, *options: str) -> str:
        done = run_warm(ROOT / "stages" / name, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    own = options_in(help_of(stage, "--help").partition("options:")[2])
    of_deepspeed = {"--num_gpus", "--hostfile", "--master_addr"}  # used by every test that starts it
    of_train = options_in(help_of("train.py", "--help").partition("options:")[2])
    assert "--help" in own
    assert options_in(help_of(stage, "--help")) <= own | of_train | of_deepspeed
