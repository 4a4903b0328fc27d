"""Recipes: what is wrong is refused with the key, the value got and the value wanted."""

from pathlib import Path

import pytest

from pipeline.recipe.file import describe_recipe, load_recipe
from pipeline.recipe.schema import RecipeError, check_against_set

RECIPES = sorted((Path(__file__).parents[3] / "stages" / "recipes").glob("*.yaml"))
DEMO = next(p for p in RECIPES if p.stem == "demo")

FAULTS = {
    "optimizer.learnig_rate=0.1": "optimizer.learnig_rate: unknown key; did you mean learning_rate?",
    "head.zzz=1": "head.zzz: unknown key; wanted one of margin, m,",
    "optimizer.learning_rate=1e-1": 'optimizer.learning_rate: got "1e-1", wanted a valid number (YAML reads 1e-1 as',
    "optimizer.learning_rate=-1": "optimizer.learning_rate: got -1, wanted greater than 0",
    "optimizer.steps=1.5": "optimizer.steps: got 1.5, wanted a valid integer",
    "data.augment=mirror": 'data.augment: got "mirror", wanted a valid array',
    "zero_stage=4": "zero_stage: got 4, wanted 0, 1, 2 or 3",
    "precision=float16": "precision: got \"float16\", wanted 'float32' or 'bfloat16'",
    "backbone.name=resnet50": "backbone.name: got 'resnet50', wanted one of sphereface4",
    "head.margin=arc": "head.margin: got 'arc', wanted one of softmax",
    "head.lambda_min=2000": "head.lambda_min: got 2000.0, wanted at most lambda_max 20.0",
    "optimizer.milestones=[5,3]": "optimizer.milestones: got [5, 3], wanted rising steps",
    "data.accumulation=5": "data.accumulation: got 5, wanted a divisor of data.global_batch 32",
    "data.streams=5": "data.streams: got 5, wanted a divisor of data.global_batch 32",
    "data.shards=null": "data.shards: got null, wanted a valid string",
    "head.phases=[{start: 0, mm: 2}]": "head.phases.0.mm: unknown key; did you mean m?",
    "evaluation.sets.lfw.imagez=/faces": "evaluation.sets.lfw.imagez: unknown key; did you mean images?",
    "evaluation.sets.lfw.images=/faces": "evaluation.sets.lfw.pairs: missing; wanted a value in the recipe or --set",
    "evaluation.sets={a/b: {images: /faces, pairs: /pairs.tsv}}": "evaluation.sets.a/b.[key]: got",
    "evaluation.best=lfw": "evaluation.best: got 'lfw', wanted one of sets: there are none",
    "evaluation.every=30": "evaluation.every: got 30, wanted a multiple of checkpoint.every 100",
    "nonsense": "--set: got 'nonsense', wanted key=value",
    "seed.a=1": "--set: got 'seed.a', but 'seed' is a value, not a section",
}


@pytest.mark.parametrize("change", FAULTS)
def test_faults_name_key_got_and_wanted(change: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(DEMO, [change])
    assert FAULTS[change] in str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(DEMO, ["optimizer.steps=0", "seed=-1"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("just text", "got str, wanted keys and values"),
        ("seed: 1", "data: missing; wanted a value"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.yaml: No such file or directory; wanted a recipe file"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_load_and_survive_being_saved(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    saved = tmp_path / "recipe.yaml"
    saved.write_text(recipe.to_yaml())
    assert load_recipe(saved) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_say_source_expectation_and_command(path: Path) -> None:
    head = path.read_text().split("seed:")[0]
    assert all(word in head for word in ("Source:", "Expected:", "Command:"))


def test_changes_apply_and_the_recipe_is_frozen() -> None:
    recipe = load_recipe(DEMO, ["head.m=2", "data.shards=/x", "optimizer.milestones=[3, 4]"])
    assert (recipe.head.m, recipe.data.shards, recipe.optimizer.milestones) == (2, Path("/x"), (3, 4))
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1000, 10, 3), "data.global_batch: got 32, wanted a multiple of 3 (3 ranks × accumulation 1)"),
        ((31, 10, 2), "data.global_batch: got 32, wanted at most the 31 samples"),
        ((1000, 1, 2), "data.shards: got 1 identities, wanted at least one for each of 2 ranks"),
    ],
)
def test_what_does_not_go_with_the_set_is_refused(numbers: tuple[int, int, int], message: str) -> None:
    samples, identities, ranks = numbers
    with pytest.raises(RecipeError) as caught:
        check_against_set(load_recipe(DEMO), samples=samples, identities=identities, num_ranks=ranks)
    assert message in str(caught.value)


def test_every_key_is_described() -> None:
    text = describe_recipe()
    assert "None" not in text
    for key in ("seed", "data.shards", "head.lambda_gamma", "head.phases[].lambda_min", "log.metrics_port"):
        assert key in text


def test_paths_do_not_depend_on_where_a_run_is_gone_on_with() -> None:
    assert load_recipe(DEMO, ["data.shards=some/shards"]).data.shards == Path.cwd() / "some" / "shards"


def test_when_a_recipe_evaluates(tmp_path: Path) -> None:
    sets = {name: {"images": str(tmp_path), "pairs": "pairs.tsv"} for name in ("lfw", "agedb")}
    recipe = load_recipe(DEMO, [f"evaluation.sets={sets}", "checkpoint.every=10", "optimizer.steps=35"])
    assert [step for step in range(36) if recipe.evaluates_after(step)] == [10, 20, 30, 35]
    assert recipe.best_set == "lfw"
    assert recipe.evaluation.sets["agedb"].pairs == Path.cwd() / "pairs.tsv"
    rarer = load_recipe(DEMO, [f"evaluation.sets={sets}", "checkpoint.every=10", "evaluation.every=20"])
    assert [step for step in range(45) if rarer.evaluates_after(step)] == [20, 40]
    without = load_recipe(DEMO, ["evaluation.every=100"])
    assert not without.evaluates_after(100)
    assert without.best_set is None
