"""What may change in a recipe between two starts of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.optim.sgd import SGD
from pipeline.recipe.schema import Data, Recipe, RecipeError
from pipeline.run.changes import FIXED, changes, flat


def recipe(steps: int = 10, zero_stage: Literal[0, 1] = 0) -> Recipe:
    return Recipe(
        data=Data(shards=Path("set"), global_batch=12, streams=2),
        backbone=SphereFaceBackbone(name="sphereface4"),
        optimizer=SGD(steps=steps, learning_rate=0.1),
        zero_stage=zero_stage,
    )


def saved(run: Path, text: str = "") -> Path:
    (run / "recipe.yaml").write_text(recipe().to_yaml() + text)
    return run


def test_nothing_changed(tmp_path: Path) -> None:
    assert changes(saved(tmp_path), recipe()) == []


def test_changes_are_named_old_and_new(tmp_path: Path) -> None:
    assert changes(saved(tmp_path), recipe(steps=20, zero_stage=1)) == ["zero_stage: 0 → 1", "optimizer.steps: 10 → 20"]


@pytest.mark.parametrize("key", FIXED)
def test_what_decides_the_order_may_not_change(tmp_path: Path, key: str) -> None:
    tree = recipe().model_dump(mode="json")
    section = tree["data"] if "." in key else tree
    section[key.rpartition(".")[2]] = 6
    with pytest.raises(RecipeError, match=f"{key}: got 6, wanted {flat(recipe().model_dump())[key]} as in"):
        changes(saved(tmp_path), Recipe.model_validate_json(json.dumps(tree)))


@pytest.mark.parametrize("text", [": : :", "just text", ""])
def test_a_damaged_recipe_file_does_not_stop_a_resume(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert changes(tmp_path, recipe()) == []


def test_keys_of_newer_and_older_versions_are_no_change(tmp_path: Path) -> None:
    run = saved(tmp_path, "gone_since: 3\n")
    text = (run / "recipe.yaml").read_text().replace("zero_stage: 0\n", "")
    (run / "recipe.yaml").write_text(text)
    assert changes(run, recipe()) == []
