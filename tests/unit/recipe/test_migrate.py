"""Recipes that older versions saved, and that users wrote for them, load as today's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.margins.arcface import ArcFace
from pipeline.head.margins.softmax import Softmax
from pipeline.reading.augment import Mirror
from pipeline.recipe.file import load_recipe
from pipeline.recipe.migrate import migrate
from pipeline.recipe.phases import Phase
from pipeline.recipe.schema import RecipeError
from pipeline.run.changes import changes

# The head of a recipe.yaml in the folder of a run, word for word: every key of every margin was saved.
SAVED_HEAD = """
head:
  margin: a_softmax
  m: 4.0
  scale: 64.0
  angle: 0.5
  cosine: 0.35
  detached: false
  lambda_max: 20.0
  lambda_min: 5.0
  lambda_gamma: 0.05
  lambda_power: 1.0
  phases:
  - start: 4
    m: 2.0
    lambda_max: null
    lambda_min: null
  - start: 8
    m: 4.0
    lambda_max: null
    lambda_min: 1.0
  sample_rate: 1.0
  fused_update: false
  ranks: null
  block: 2048
"""
REST = """
data: {shards: /data/shards, global_batch: 32}
backbone: {name: sphereface4}
optimizer: {steps: 200, learning_rate: 0.01}
"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(SAVED_HEAD + REST)
    return path


def test_a_saved_recipe_of_before_loads_with_one_line_that_names_the_new_keys(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        head = load_recipe(saved).head
    assert head.margin == ASoftmax(m=4, lambda_max=20, lambda_min=5, lambda_gamma=0.05)
    assert head.phases == (Phase(start=4, m=2.0), Phase(start=8, m=4.0, lambda_min=1.0))
    assert [head.lambda_at(step) for step in (0, 4, 8, 10**6)] == [20 / 1.05, 20 / 1.05, 20 / 1.05, 1.0]
    assert len(caplog.messages) == 1
    assert f"{saved}: keys of an older version: head.m is now head.margin.m, head.detached" in caplog.messages[0]
    assert "head.angle" not in caplog.messages[0], "a key that the margin does not read has no new name"


def test_todays_recipe_is_not_touched_and_not_logged(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    today = load_recipe(saved)
    saved.write_text(today.to_yaml())
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert load_recipe(saved) == today
    assert not caplog.messages
    tree = yaml.safe_load(today.to_yaml())
    assert migrate(tree) == (tree, [])


def test_a_resumed_run_of_before_has_not_changed(saved: Path) -> None:
    assert changes(saved.parent, load_recipe(saved)) == []
    assert changes(saved.parent, load_recipe(saved, ["head.margin.m=3"])) == ["head.margin.m: 4.0 → 3.0"]
    other = changes(saved.parent, load_recipe(saved, ["head.margin=softmax", "head.phases=[]"]))
    assert other[0] == "head.margin.name: a_softmax → softmax"


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        ({"margin": "arcface", "m": 4, "angle": 0.3, "lambda_max": 7}, ArcFace(angle=0.3)),
        ({"margin": "softmax", "detached": True}, Softmax()),
        ({"lambda_min": 0}, ASoftmax(lambda_min=0)),
        ({"margin": "arcface"}, ArcFace()),
        ({"margin": {"name": "arcface", "angle": 0.1}}, ArcFace(angle=0.1)),
    ],
)
def test_recipes_that_users_wrote(tmp_path: Path, head: dict[str, Any], wanted: object) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"head": head | {"block": 7}}) + REST)
    recipe = load_recipe(path, ["head.sample_rate=0.5"])
    assert (recipe.head.margin, recipe.head.block, recipe.head.sample_rate) == (wanted, 7, 0.5)


def test_phases_lose_the_keys_that_the_margin_does_not_read() -> None:
    head = {"margin": "arcface", "m": 4, "phases": [{"start": 3, "m": 2, "lambda_max": None}]}
    assert migrate({"head": head})[0] == {"head": {"margin": {"name": "arcface"}, "phases": [{"start": 3}]}}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"margin": {"name": "arcface"}, "angle": 0.1}, "head.angle: unknown key; it is head.margin.angle now"),
        ({"margin": "arc", "m": 2}, "head.margin.name: got 'arc', wanted one of"),
        ({"margin": "a_softmax", "m": 2, "phases": [3]}, "head.phases.0: got 3"),
        ([1], "head: got"),
    ],
)
def test_what_is_neither_of_before_nor_of_today_is_refused(tmp_path: Path, head: object, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"head": head}) + REST)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)


def test_a_recipe_is_not_changed_in_place(saved: Path) -> None:
    tree = yaml.safe_load(saved.read_text())
    migrate(tree)
    assert tree == yaml.safe_load(saved.read_text())


@pytest.mark.parametrize(("mirror", "augment"), [(True, (Mirror(name="mirror"),)), (False, ())])
def test_mirror_of_before_is_an_augmentation_now(
    tmp_path: Path, mirror: bool, augment: tuple[Mirror, ...], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": {"shards": "/s", "global_batch": 8, "mirror": mirror, "prefetch": 2}}))
    path.write_text(path.read_text() + REST.replace("data: {shards: /data/shards, global_batch: 32}\n", ""))
    with caplog.at_level(logging.INFO):
        recipe = load_recipe(path)
    assert (recipe.data.augment, recipe.data.prefetch) == (augment, 2)
    assert caplog.messages == [f"{path}: keys of an older version: data.mirror is now data.augment"]
    assert changes(tmp_path, recipe) == []


@pytest.mark.parametrize("data", [{"mirror": True, "augment": []}, {"mirror": 1}])
def test_a_mirror_that_is_neither_of_before_nor_of_today_is_refused(tmp_path: Path, data: dict[str, object]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"data": {"shards": "/s", "global_batch": 8} | data}))
    with pytest.raises(RecipeError, match=r"data.mirror: unknown key; it is data.augment now"):
        load_recipe(path)
