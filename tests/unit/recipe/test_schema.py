"""Recipes: what is wrong is refused with the key, the value got and the value wanted."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest

from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.margins.arcface import ArcFace
from pipeline.head.margins.softmax import Softmax
from pipeline.recipe.file import describe_recipe, kind_of, load_recipe
from pipeline.recipe.fit import check_against_set
from pipeline.recipe.schema import RecipeError
from pipeline.recipe.suggest import OTHER_NAMES

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "stages" / "recipes").glob("*.yaml"))
DEMO = next(p for p in RECIPES if p.stem == "demo")

FAULTS = {
    "optimizer.learnig_rate=0.1": "optimizer.learnig_rate: unknown key; did you mean learning_rate?",
    "optimizer.lr=0.1": "optimizer.lr: unknown key; it is optimizer.learning_rate",
    "data.batch_size=8": "data.batch_size: unknown key; it is data.global_batch, over all ranks",
    "learning_rate=0.1": "learning_rate: unknown key; did you mean optimizer.learning_rate?",
    "every=3": "every: unknown key; did you mean checkpoint.every or evaluation.every or log.every?",
    "head.zzz=1": "head.zzz: unknown key; wanted one of margin, phases,",
    "optimizer.learning_rate=1e-1": 'optimizer.learning_rate: got "1e-1", wanted a valid number (YAML reads 1e-1 as',
    "optimizer.learning_rate=-1": "optimizer.learning_rate: got -1, wanted greater than 0",
    "faults.step_seconds=.inf": "faults.step_seconds: got Infinity, wanted a finite number",
    "init.step=5": "init.step: got 5 with run null, wanted a run to start from",
    "optimizer.steps=1.5": "optimizer.steps: got 1.5, wanted a valid integer",
    "data.mirror=1": "data.mirror: unknown key; it is data.augment now",
    "data.augment=mirror": 'data.augment: got "mirror", wanted a valid array',
    "zero_stage=4": "zero_stage: got 4, wanted 0, 1, 2 or 3",
    "precision=float16": "precision: got \"float16\", wanted 'float32' or 'bfloat16'",
    "backbone.name=resnet50": "backbone.name: got 'resnet50', wanted one of sphereface4",
    "backbone=r50": "; did you mean iresnet50?",
    "head.margin=arc": "head.margin.name: got 'arc', wanted one of a_softmax",
    "head.margin.lambda_min=2000": "head.margin.lambda_min: got 2000.0, wanted at most lambda_max 20.0",
    "head.margin.m=0.5": "head.margin.m: got 0.5, wanted greater than or equal to 1",
    "head.margin.lamda_max=1": "head.margin.lamda_max: unknown key; did you mean lambda_max?",
    "head.margin.angle=0.3": "head.margin.angle: unknown key; a key of arcface, combined, ",
    "head.margin={name: softmax, detached: true}": "head.margin.detached: unknown key; a key of a_softmax, a_softmax_n",
    "head={margin: softmax, unit_rows: true}": "head.unit_rows: got true with margin softmax, wanted false",
    "head.margin.gradient=authors": "head.unit_rows: got false with margin.gradient authors, wanted true",
    "head.m=3": "head.m: unknown key; it is head.margin.m now",
    "head.lambda_power=2": "head.lambda_power: unknown key; it is head.margin.lambda_power now",
    "optimizer.milestones=[5,3]": "optimizer.milestones: got [5, 3], wanted rising steps",
    "optimizer.clip_norm=0": "optimizer.clip_norm: got 0, wanted greater than 0",
    "optimizer.clip_rows=true": "optimizer.clip_rows: got true with clip_norm null, wanted a norm to clip to",
    "data.max_undecodable=2": "data.max_undecodable: got 2, wanted less than or equal to 1",
    "log.profile=[0]": "log.profile.0: got 0, wanted greater than or equal to 1",
    "data.accumulation=5": "data.accumulation: got 5, wanted a divisor of data.global_batch 32",
    "data.streams=5": "data.streams: got 5, wanted a divisor of data.global_batch 32",
    "data.shards=null": "data.shards: got null, wanted a valid string",
    "head.phases=[{start: 0, mm: 2}]": "head.phases.0.mm: unknown key; did you mean m?",
    "head.phases=[{start: 0}, {start: 5, m: 0.5}]": "head.phases.1.m: got 0.5, wanted greater than or equal to 1",
    "head.phases=[{start: 0, m: two}]": 'head.phases.0.m: got "two", wanted a valid number',
    "head.phases=[{start: 0, cosine: 0.1}]": "head.phases.0.cosine: unknown key; a key of cosface, combined, ",
    "head.phases=[{start: 0, lambda_min: 30}]": "head.phases.0.lambda_min: got 30.0, wanted at most lambda_max 20.0",
    "head.phases=[{start: 0, name: arcface}]": "head.phases.0.name: got 'arcface', wanted one margin for the whole run",
    "head.phases=[{m: 2}]": "head.phases.0.start: missing; wanted a value",
    "head.phases=[{start: 5, sample_rate: 2}]": "head.phases.0.sample_rate: got 2, wanted less than or equal to 1",
    "head={ranks: 1, phases: [{start: 5, sample_rate: 0.5}]}": "head.sample_rate: got 0.5 with ranks 1, wanted 1",
    "head.phases=[{start: 5, sample_rate: 0}]": "head.phases.0.sample_rate: got 0, wanted greater than 0",
    "data.phases=[{start: 0, augment: []}]": "data.phases.0.start: got 0, wanted greater than or equal to 1",
    "data.phases=[{start: 5}]": "data.phases.0.augment: missing; wanted a value",
    "data.phases=[{start: 5, augment: []}, {start: 5, augment: []}]": "data.phases: got starts [5, 5], wanted rising",
    "data.phases=[{start: 5, augment: [flip]}]": "data.phases.0.augment.0.name: got 'flip', wanted one of mirror",
    "optimizer.phases=[{start: 5, learning_rate: 0}]": "optimizer.phases.0.learning_rate: got 0, wanted greater than 0",
    "head.phases=[{start: 5}, {start: 3}]": "head.phases: got starts [5, 3], wanted rising steps",
    "evaluation.sets.lfw.imagez=/faces": "evaluation.sets.lfw.imagez: unknown key; did you mean images?",
    "evaluation.sets.lfw.images=/faces": "evaluation.sets.lfw.pairs: missing; wanted a value in the recipe or --set",
    "evaluation.sets={a/b: {images: /faces, pairs: /pairs.tsv}}": "evaluation.sets.a/b.[key]: got",
    "evaluation.best=lfw": "evaluation.best: got 'lfw', wanted one of sets: there are none",
    "evaluation.every=30": "evaluation.every: got 30, wanted a multiple of checkpoint.every 100",
    "nonsense": "--set: got 'nonsense', wanted key=value",
    "=3": "--set: got '=3', wanted key=value",
    "data.augment=[mirror": "--set: got 'data.augment=[mirror', wanted a value in YAML: expected ',' or ']', but got",
    "data.augment=[mirror, flip]": "data.augment.1.name: got 'flip', wanted one of mirror, crop, affine",
    "backbone.name.a=1": "--set: got 'backbone.name.a', but 'name' is a value, not a section",
    "optimizer.steps=1e3": 'optimizer.steps: got "1e3", wanted a valid integer (YAML reads 1e-1 as',
    "seed.a=1": "--set: got 'seed.a', but 'seed' is a value, not a section",
}


@pytest.mark.parametrize("change", FAULTS)
def test_faults_name_key_got_and_wanted(change: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(DEMO, [change])
    assert FAULTS[change] in str(caught.value)


@pytest.mark.parametrize("change", ["head.fused_update=true", "head.ranks=2"])
def test_rows_whose_gradient_is_not_known_before_the_update_are_not_clipped(change: str) -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.clip_rows: got true with head\.\w+ \w+, wanted false: the norm"):
        load_recipe(DEMO, ["optimizer.clip_norm=5", "optimizer.clip_rows=true", change])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["data.accumulation=2", "head.phases=[{start: 5, sample_rate: 0.5}]"],
            "head.sample_rate: got 0.5 with data.accumulation 2, wanted accumulation 1",
        ),
        (["data.accumulation=2", "head.fused_update=true"], "head.fused_update: got True with data.accumulation 2"),
        (["log.suspect_degrees=75", "head.ranks=1"], "log.suspect_degrees: got 75.0 with head.ranks 1, wanted null"),
        (["backbone.compile=true", "zero_stage=3"], "backbone.compile: got true with zero_stage 3, wanted 0, 1 or 2"),
        (["log.metrics_client_ca=/ca.pem"], "log.metrics_client_ca: got /ca.pem without metrics_certificate, wanted"),
        (["log.metrics_key=/k.pem"], "log.metrics_key: got /k.pem with metrics_certificate None, wanted both"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(DEMO, changes)
    assert message in str(caught.value)


def test_the_authors_gradient_goes_with_rows_of_length_one() -> None:
    head = load_recipe(DEMO, ["head.margin={name: a_softmax, gradient: authors}", "head.unit_rows=true"]).head
    assert head.margin == ASoftmax(gradient="authors")


def test_every_fault_is_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(DEMO, ["optimizer.steps=0", "seed=-1"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"not YAML: expected the node content, but found '<stream end>', line 1, column 5$"),
        ("data: {window: 1}\nseed: 1\ndata: {window: 2}", r"not YAML: data stands twice, line 3, column 1$"),
        ("just text", "got str, wanted keys and values"),
        ("seed: 1", "data: missing; wanted a value"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_a_picture_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(RecipeError, match=r"recipe.yaml: not text in UTF-8; wanted a recipe file$"):
        load_recipe(path)


def test_words_that_are_no_number_get_no_advice_on_how_numbers_are_written() -> None:
    with pytest.raises(RecipeError, match=r'optimizer.steps: got "many", wanted a valid integer$'):
        load_recipe(DEMO, ["optimizer.steps=many"])


def test_mixes_are_among_the_augmentations_that_are_offered() -> None:
    with pytest.raises(RecipeError, match=r"wanted one of mirror, .*, adaface, arcface_torch$"):
        load_recipe(DEMO, ["data.augment=[flip]"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.yaml: No such file or directory; wanted a recipe file"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_load_and_survive_being_saved(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    saved = tmp_path / "recipe.yaml"
    saved.write_text(recipe.to_yaml())
    assert load_recipe(saved) == recipe


def test_changes_apply_and_the_recipe_is_frozen() -> None:
    margin = ASoftmax(m=2, lambda_max=20, lambda_min=5, lambda_gamma=0.05)
    recipe = load_recipe(DEMO, ["head.margin.m=2", "data.shards=/x", "optimizer.milestones=[3, 4]"])
    assert (recipe.head.margin, recipe.data.shards, recipe.optimizer.milestones) == (margin, Path("/x"), (3, 4))
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 2  # type: ignore[misc]


def test_a_choice_is_replaced_as_a_whole_or_changed_key_by_key(tmp_path: Path) -> None:
    assert load_recipe(DEMO, ["head.margin=softmax"]).head.margin == Softmax()
    assert load_recipe(DEMO, ["head.margin=arcface", "head.margin.angle=0.3"]).head.margin == ArcFace(angle=0.3)
    short, bare = tmp_path / "short.yaml", tmp_path / "bare.yaml"
    rest = (
        "data: {shards: s, global_batch: 8}\nbackbone: {name: sphereface4}\noptimizer: {steps: 1, learning_rate: 0.1}\n"
    )
    short.write_text("head: {margin: arcface}\n" + rest)
    bare.write_text(rest)
    assert load_recipe(short).head.margin == ArcFace()
    assert load_recipe(short, ["head.margin.scale=30"]).head.margin == ArcFace(scale=30)
    assert load_recipe(bare, ["head.margin.m=2"]).head.margin == ASoftmax(m=2)


def test_phases_change_any_key_of_the_margin() -> None:
    phases = "head.phases=[{start: 3, angle: 0.2, detached: true}, {start: 5, scale: 30}]"
    head = load_recipe(DEMO, ["head.margin=arcface", phases]).head
    assert [head.margin_at(step) for step in (2, 3, 5)] == [
        ArcFace(),
        ArcFace(angle=0.2, detached=True),
        ArcFace(scale=30),
    ]
    assert [head.lambda_at(step) for step in (0, 3)] == [None, None]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1000, 10, 3), "data.global_batch: got 32, wanted a multiple of 3 (3 ranks × accumulation 1)"),
        ((31, 10, 2), "data.global_batch: got 32, wanted at most the 31 samples"),
        ((1000, 3, 4), "data.shards: got 3 identities, wanted at least one for each of 4 ranks"),
        ((1000, 1, 1), "data.shards: got 1 identity, wanted at least 2 to tell apart"),
    ],
)
def test_what_does_not_go_with_the_set_is_refused(numbers: tuple[int, int, int], message: str) -> None:
    samples, identities, ranks = numbers
    with pytest.raises(RecipeError) as caught:
        check_against_set(
            load_recipe(DEMO), samples=samples, identities=identities, image_size=(16, 16), num_ranks=ranks
        )
    assert message in str(caught.value)


@pytest.mark.parametrize("changes", [["backbone.frozen=[stem]"], ["backbone.batch_norm=synchronised"]])
def test_a_network_that_cannot_be_built_is_refused(changes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # not installed
    recipe = load_recipe(DEMO, ["backbone.name=timm/convnext_tiny", *changes])
    with pytest.raises(RecipeError, match=r"^backbone.name: got timm/convnext_tiny, wanted pip install"):
        check_against_set(recipe, samples=1000, identities=40, image_size=(112, 96), num_ranks=1)


def test_the_size_of_images_is_no_key_of_a_network() -> None:
    recipe = load_recipe(DEMO, ["backbone={name: vit_t, patch_size: 9, frozen: [blocks]}"])
    with pytest.raises(RecipeError, match=r"^image_size: got \(8, 8\), wanted at least 9 × 9: one patch"):
        check_against_set(recipe, samples=1000, identities=40, image_size=(8, 8), num_ranks=1)


ONE_IMAGE = ": the batch norms of iresnet18 have no variance of one image at a time"


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        (
            (),
            32,
            "data.global_batch: got 32, wanted at least 64 (32 ranks × accumulation 1), or backbone.batch_norm sync",
        ),
        (
            ("data.accumulation=4",),
            8,
            "got 32, wanted at least 64 (8 ranks × accumulation 4), or backbone.batch_norm sy",
        ),
        (("data.accumulation=32",), 1, "got 32, wanted at least 64 (1 ranks × accumulation 32)" + ONE_IMAGE),
        (("data.accumulation=2",), 8, None),
        (("backbone.batch_norm=synchronised",), 32, None),
        (
            ("backbone.batch_norm=synchronised", "data.accumulation=32"),
            1,
            "got 32, wanted at least 64 (1 ranks × accumulation 32)" + ONE_IMAGE,
        ),
        (("backbone.name=sphereface4",), 32, None),
        (
            ("backbone.name=sphereface4", "backbone.batch_norm=synchronised"),
            2,
            "backbone.batch_norm: got synchronised, wanted local: sphereface4 has no batch norm",
        ),
    ],
)
def test_a_batch_norm_needs_two_images(changes: tuple[str, ...], ranks: int, message: str | None) -> None:
    recipe = load_recipe(DEMO, ["backbone.name=iresnet18", *changes])
    numbers = {"samples": 1000, "identities": 40, "num_ranks": ranks}
    if message is None:
        check_against_set(recipe, image_size=(16, 16), **numbers)
        return
    with pytest.raises(RecipeError) as caught:
        check_against_set(recipe, image_size=(16, 16), **numbers)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_key_is_described() -> None:
    # In a process of its own: toys that other tests add to the tables would be described too.
    command = [sys.executable, "-c", "from pipeline.recipe.file import describe_recipe; print(describe_recipe())"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "None" not in text
    assert "  head.margin.name (" not in text, "it is described with the choice"
    keys = ("seed", "data.shards", "data.augment[].probability", "head.margin.lambda_gamma", "head.phases[].start")
    for key in (*keys, "log.metrics_port"):
        assert key in text
    assert '  precision (float32 or bfloat16; default "float32")\n' in text
    assert "  data.global_batch (int; required)\n" in text
    # What goes on in another line stays below its key: nothing but keys of sections and of choices stand at the margin.
    assert all(re.match(r"[a-z_.\[\]]+: ", line) for line in text.splitlines() if line and not line.startswith(" "))
    assert text.count("].name: cutout: ") == 1 and "are those of data.augment[]." in text


def test_one_key_is_described_alone() -> None:
    everything = describe_recipe()
    checkpoint = describe_recipe("checkpoint")
    assert checkpoint.startswith("checkpoint: When the run is saved.\n  checkpoint.every (int; default 1000)\n")
    assert checkpoint in everything and everything.count("\n") > checkpoint.count("\n")
    assert re.findall(r"^(\w+): ", checkpoint, re.MULTILINE) == ["checkpoint"]
    assert describe_recipe("seed").startswith("  seed (int; default 0)\n")
    with pytest.raises(RecipeError, match=r"--help-recipe: got 'heads', wanted one of seed, .*, head, .*, log$"):
        describe_recipe("heads")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "true or false"),
        (Path | None, "path or null"),
        (Optional[Annotated[str, "of no matter"]], "text or null"),  # noqa: UP045 - as pydantic keeps it
        (tuple[int, ...], "list of int"),
        (tuple[float, Annotated[float, "too"]], "[float, float]"),
        (Literal[0, "one"], "0 or one"),
    ],
)
def test_a_kind_is_said_as_yaml_has_it(annotation: Any, words: str) -> None:
    assert kind_of(annotation) == words


def test_paths_do_not_depend_on_where_a_run_is_resumed() -> None:
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


def test_other_trainers_names_lead_to_keys_that_there_are() -> None:
    keys = set(re.findall(r"^  ([\w.]+) \(", describe_recipe(), re.MULTILINE)) | {"backbone.name", "head.margin"}
    for meant in OTHER_NAMES.values():
        for key in meant.removesuffix(", over all ranks").split(" or "):
            assert key in keys
