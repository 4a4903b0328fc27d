"""What may change in a recipe between two starts of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.optim.sgd import SGD
from pipeline.recipe.schema import Data, Recipe, RecipeError
from pipeline.run.changes import FIXED, changes, changes_since, fixed_keys, flat
from pipeline.run.checkpoint import Meta


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


def meta(plan: Recipe, **changed: Any) -> Meta:
    facts: dict[str, Any] = {"shards_sha256": "a" * 64, "fixed": fixed_keys(plan), "threads": 2, "device": "cpu"}
    return Meta(4, 3, 8, "ab", 2, **facts | changed)


@pytest.mark.parametrize("where", ["checkpoint", "recipe.yaml"])
@pytest.mark.parametrize("key", FIXED)
def test_what_decides_the_order_may_not_change(tmp_path: Path, key: str, where: str) -> None:
    tree = recipe().model_dump(mode="json")
    section = tree["data"] if "." in key else tree
    section[key.rpartition(".")[2]] = 6
    other = Recipe.model_validate_json(json.dumps(tree))
    if where == "checkpoint":  # what somebody has made of the file does not count
        (tmp_path / "recipe.yaml").write_text(other.to_yaml())
        then = meta(recipe())
    else:
        saved(tmp_path)
        then = meta(recipe(), fixed={})
    file = "step-00000004/meta.json" if where == "checkpoint" else "recipe.yaml"
    with pytest.raises(RecipeError, match=f"{key}: got 6, wanted {flat(recipe().model_dump())[key]} as in .*{file}"):
        changes_since(tmp_path, then, meta(other), other)


def test_another_set_is_refused_or_accepted_by_its_digest(tmp_path: Path) -> None:
    then, now = meta(recipe()), meta(recipe(), shards_sha256="b" * 64)
    with pytest.raises(RecipeError, match=r"got the set b{12}, wanted a{12} .*--set data.accept_shards=b{12}$"):
        changes_since(tmp_path, then, now, recipe())
    for accepted in ("a" * 12, "b" * 12, "b" * 64):
        plan = recipe().model_copy(update={"data": recipe().data.model_copy(update={"accept_shards": accepted})})
        if accepted.startswith("a"):
            with pytest.raises(RecipeError, match="got the set"):
                changes_since(tmp_path, then, now, plan)
        else:
            assert changes_since(tmp_path, then, now, plan) == ["shards: aaaaaaaaaaaa → bbbbbbbbbbbb"]


def test_what_decides_the_last_bits_is_reported(tmp_path: Path) -> None:
    now = replace(meta(recipe(), threads=1, device="gpu"), num_ranks=3)
    assert changes_since(tmp_path, meta(recipe()), now, recipe()) == [
        "ranks: 2 → 3",
        "threads: 2 → 1",
        "device: cpu → gpu",
    ]
    assert changes_since(tmp_path, now, now, recipe()) == []
    assert changes_since(tmp_path, Meta(4, 3, 8, "ab", 3), now, recipe()) == [], "a checkpoint of before says less"


@pytest.mark.parametrize("text", [": : :", "just text", ""])
def test_a_damaged_recipe_file_does_not_stop_a_resume(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert changes(tmp_path, recipe()) == []


def test_keys_of_newer_and_older_versions_are_no_change(tmp_path: Path) -> None:
    run = saved(tmp_path, "gone_since: 3\n")
    text = (run / "recipe.yaml").read_text().replace("zero_stage: 0\n", "")
    (run / "recipe.yaml").write_text(text)
    assert changes(run, recipe()) == []
