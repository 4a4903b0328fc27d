"""A study file to runs: every arm with every seed, once, and what cannot be run refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.evaluation.study import StudyError, differences, load_study, runs_of
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import RecipeError

STUDIES = sorted((Path(__file__).parents[3] / "stages" / "studies").glob("*.yaml"))

RECIPE = """\
data: {shards: elsewhere, global_batch: 12}
backbone: {name: sphereface4}
optimizer: {steps: 20, learning_rate: 0.01}
"""


def tree() -> dict[str, Any]:
    return {
        "title": "losses",
        "recipe": "recipes/base.yaml",
        "shards": "casia",
        "sets": {"LFW": {"images": "lfw", "pairs": "lfw.tsv"}},
        "seeds": [1, 2],
        "set": ["optimizer.steps=30"],
        "arms": {
            "softmax": {"set": ["head.margin=softmax"]},
            "m4": {},
            "deep": {"set": ["head.margin.m=3"], "seeds": [7]},
        },
        "tables": [
            {"title": "a", "columns": {"Softmax": "softmax", "m = 4": "m4"}, "published": {"LFW": [97.88, None]}},
            {"title": "b", "columns": {"m = 4": "m4", "deep": "deep"}},
        ],
    }


def written(folder: Path, study: dict[str, Any]) -> Path:
    (folder / "recipes").mkdir(exist_ok=True)
    (folder / "recipes" / "base.yaml").write_text(RECIPE)
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return file


def test_every_arm_has_its_turn_with_a_seed_before_the_next_seed(tmp_path: Path) -> None:
    file = written(tmp_path, tree())
    runs = runs_of(load_study(file), file, tmp_path / "data")
    names = ["softmax-seed1", "m4-seed1", "softmax-seed2", "m4-seed2", "deep-seed7"]
    assert [run.name for run in runs] == names  # once each, though two tables show m4


def test_a_run_is_the_base_recipe_with_the_changes_of_study_arm_seed_and_command_in_that_order(tmp_path: Path) -> None:
    file = written(tmp_path, tree())
    run = runs_of(load_study(file), file, tmp_path / "data", ["optimizer.steps=40"])[2]
    expected = load_recipe(
        tmp_path / "recipes" / "base.yaml",
        ["head.margin=softmax", "seed=2", "optimizer.steps=40", f"data.shards={tmp_path / 'data' / 'casia'}"],
    )
    assert run.recipe == expected
    assert load_recipe(tmp_path / "recipes" / "base.yaml", list(run.changes)) == expected


def test_an_arm_has_its_way_over_the_study_and_its_seed_over_both(tmp_path: Path) -> None:
    study = tree()
    study["set"] += ["seed=5"]
    study["arms"] = {"m4": {"set": ["optimizer.steps=35", "seed=6"]}}
    study["tables"] = [{"title": "a", "columns": {"m": "m4"}}]
    file = written(tmp_path, study)
    runs = runs_of(load_study(file), file, tmp_path / "da: ta")
    assert [(run.recipe.optimizer.steps, run.recipe.seed) for run in runs] == [(35, 1), (35, 2)]
    assert runs[0].recipe.data.shards == tmp_path / "da: ta" / "casia"


def test_a_network_from_elsewhere_is_given_as_the_evaluation_takes_it(tmp_path: Path) -> None:
    networks = {
        "r50": {"weights": "r50.pth", "network": "iresnet50"},
        "net": {"onnx": "n.onnx", "size": "112x96", "channels": "BGR", "mean": [1, 2, 3], "scale": [0.5]},
    }
    tables = [{"title": "c", "columns": {"theirs": "r50", "ours": "m4"}}]
    file = written(tmp_path, {**tree(), "networks": networks, "tables": tables})
    study = load_study(file)
    assert study.seeds_of("r50") == (0,)
    assert "r50" not in {run.arm for run in runs_of(study, file, tmp_path)}
    options = study.networks["r50"].options(Path("data"))
    assert options == ["--weights", "data/r50.pth", "--network", "iresnet50"]
    options = study.networks["net"].options(Path("data"))
    assert " ".join(options) == ("--onnx data/n.onnx --size 112x96 --channels BGR --mean 1.0 2.0 3.0 --scale 0.5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1, 1]}, r"seeds: got \[1, 1\], wanted different seeds"),
        ({"seeds": []}, "seeds"),
        ({"arms": {"m4": {"seeds": [3, 3]}}}, r"arms\.m4\.seeds: got \[3, 3\], wanted different seeds, at least one"),
        ({"arms": {"m4": {"seeds": []}}}, r"arms\.m4\.seeds: got \[\], wanted different seeds, at least one"),
        ({"arms": {"a/b": {}}}, "a/b"),
        ({"arm": {}}, "arm: unknown key"),
        ({"networks": {"r50": {}}}, "networks: got no file, wanted one of onnx, weights, embeddings"),
        (
            {"networks": {"r50": {"onnx": "a.onnx", "weights": "b.pth"}}},
            r"networks: got \['onnx', 'weights'\], wanted one of onnx, weights, embeddings",
        ),
        ({"networks": {"r50": {"weights": "b.pth"}}}, r"got \['weights'\], .* network with weights"),
        ({"networks": {"r50": {"embeddings": "e.npz", "mean": [0]}}}, "networks: got embeddings with an input"),
        ({"networks": {"m4": {"onnx": "a.onnx"}}}, "networks: got 'm4', which is an arm"),
        ({"networks": {"r50": {"onnx": "a.onnx", "size": "112"}}}, r"networks.r50.size: got '112'"),
        ({"tables": [{"title": "a", "columns": {"x": "m5"}}]}, "got arm 'm5', wanted one of softmax, m4, deep"),
        (
            {"tables": [{"title": "a", "columns": {"x": "m4"}, "published": {"LFW": [1, 2]}}]},
            "got 2 numbers for 'LFW', wanted 1",
        ),
        (
            {"tables": [{"title": "a", "columns": {"x": "m4"}, "published": {"CFP": [1]}}]},
            "got 1 numbers for 'CFP', wanted 1 for one of LFW",
        ),
        ({"tables": [{"columns": {"x": "m4"}}]}, r"tables\.0\.title: missing"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load_study(written(tmp_path, tree() | change))


def test_a_text_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("hello")
    with pytest.raises(StudyError, match=r"study.yaml: got str, wanted keys and values"):
        load_study(tmp_path / "study.yaml")


def test_an_arm_may_have_shards_of_its_own(tmp_path: Path) -> None:
    study = tree()
    study["arms"] = {"many": {}, "few": {"shards": "casia.500"}}
    study["tables"] = [{"title": "a", "columns": {"many": "many", "few": "few"}}]
    file = written(tmp_path, study)
    found = {run.arm: run.recipe.data.shards for run in runs_of(load_study(file), file, tmp_path / "data")}
    assert found == {"many": tmp_path / "data" / "casia", "few": tmp_path / "data" / "casia.500"}


def test_an_optional_set_is_left_out_where_its_pairs_are_not(tmp_path: Path) -> None:
    study = tree()
    study["sets"]["mine"] = {"images": "mine", "pairs": "mine.tsv", "optional": True}
    loaded = load_study(written(tmp_path, study))
    without, absent = loaded.with_sets_in(tmp_path)
    assert (list(without.sets), absent) == (["LFW"], ["mine"])  # LFW is not there either, and is refused elsewhere
    (tmp_path / "mine.tsv").touch()
    assert loaded.with_sets_in(tmp_path) == (loaded, [])


def test_a_study_without_any_set_is_refused(tmp_path: Path) -> None:
    study = tree()
    study["sets"]["LFW"]["optional"] = True
    with pytest.raises(StudyError, match=r"sets: got none of LFW in .*, wanted the pairs of one at least"):
        load_study(written(tmp_path, study)).with_sets_in(tmp_path)


def test_two_arms_that_are_one_recipe_are_refused(tmp_path: Path) -> None:
    study = tree()
    study["arms"]["again"] = {"set": ["head.margin.m=4"]}  # the default
    file = written(tmp_path, study)
    with pytest.raises(StudyError, match="'again' and 'm4' are the same recipe"):
        runs_of(load_study(file), file, tmp_path)


def test_a_recipe_that_cannot_be_run_is_refused_before_any_is(tmp_path: Path) -> None:
    study = tree()
    study["arms"]["deep"]["set"] = ["backbone.name=sphereface5"]
    file = written(tmp_path, study)
    with pytest.raises(RecipeError, match="sphereface5"):
        runs_of(load_study(file), file, tmp_path)


def test_only_what_decides_numbers_makes_a_begun_run_another(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(RECIPE)
    saved = tmp_path / "recipe.yaml"
    saved.write_text(load_recipe(base).to_yaml())
    same = ["log.every=3", "checkpoint.every=7", "data.shards=moved", "timeout_seconds=5", "data.prefetch=1"]
    same += ["faults.limit=3", "data.decode_threads=1", "data.accept_shards=abcdefabcdef"]
    assert differences(saved, load_recipe(base, same)) == []
    other = load_recipe(base, ["head.margin.m=3", "seed=4", *same])
    assert differences(saved, other) == ["seed: 0 → 4", "head.margin.m: 4.0 → 3.0"]


def test_a_run_of_an_earlier_version_is_compared_in_the_keys_that_it_had(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "base.yaml")
    earlier = recipe.model_dump(mode="json")
    del earlier["data"]["augment"], earlier["precision"]
    earlier["data"]["mirror"] = True
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(earlier))
    assert differences(tmp_path / "recipe.yaml", recipe) == []
    earlier["data"]["mirror"] = False
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(earlier))
    assert [key.split(":")[0] for key in differences(tmp_path / "recipe.yaml", recipe)] == ["data.augment"]


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_studies_that_ship_can_be_run(file: Path, tmp_path: Path) -> None:
    assert len(runs_of(load_study(file), file, tmp_path)) >= 3
