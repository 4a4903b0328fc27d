"""Every recipe that comes with the project loads, says where it is from, and is planned on the ranks of its command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pipeline.backbones import Backbone
from pipeline.backbones.size import count_macs
from pipeline.planning.memory import peak
from pipeline.planning.of_recipe import job_of, network_of
from pipeline.recipe.arcface_config import Assignments
from pipeline.recipe.file import load_recipe
from pipeline.recipe.from_arcface_torch import convert
from tests.faces import ROOT

FOLDER = ROOT / "stages" / "recipes"
RECIPES = sorted(file.name for file in FOLDER.glob("*.yaml"))

# Name -> identities, ranks. Of the others it is the user's set that decides.
SETS = {
    "casia_sphereface20.yaml": (10_575, 4),
    "casia_sphereface64.yaml": (10_575, 4),
    "ms1mv3_r50_arcface.yaml": (93_431, 8),
    "ms1mv3_r100_arcface.yaml": (93_431, 8),
    "ms1mv3_r100_adaface.yaml": (93_431, 4),
    "webface12m_r50.yaml": (617_970, 8),
    "webface42m_r50.yaml": (2_059_906, 8),
    "webface42m_vit_b.yaml": (2_059_906, 64),
    "glint360k_vit_b_lvface.yaml": (360_232, 64),
    "vggface2_sphereface2.yaml": (8_631, 4),
    "vggface2_sphereface_r.yaml": (8_631, 4),
}

# Images a second of the bare network, its backward pass and its update, on one H100 (docs/planning.md); by precision.
MEASURED = {
    "bfloat16": ("iresnet50", (112, 112), 3_897),
    "float32": ("sphereface20", (112, 96), 9_376),
}

UNPLANNED = ("demo.yaml", "fine_tune.yaml", "lfw.yaml", "many_identities.yaml", "rendered.yaml")

# What arcface_torch's configs assign, of the recipes that were converted from one.
COMMON = {"embedding_size": 512, "fp16": True, "rec": "/data", "val_targets": []}
MS1MV3 = {
    "margin_list": [1.0, 0.5, 0.0],
    "batch_size": 128,
    "lr": 0.2,
    "num_image": 5_179_510,
    "num_epoch": 25,
}
WEBFACE42M = {"margin_list": [1.0, 0.0, 0.4], "num_image": 42_474_557}
VIT_B = {
    "network": "vit_b_dp005_mask_005",
    "margin_list": [1.0, 0.0, 0.4],
    "sample_rate": 0.3,
    "batch_size": 384,
    "optimizer": "adamw",
    "lr": 0.001,
    "weight_decay": 0.1,
    "num_epoch": 40,
    "warmup_epoch": 4,
}
CONFIGS = {
    "ms1mv3_r50_arcface.yaml": {"network": "r50", "warmup_epoch": 2, **MS1MV3},
    "ms1mv3_r100_arcface.yaml": {"network": "r100", "warmup_epoch": 0, **MS1MV3},
    "webface12m_r50.yaml": {
        "network": "r50",
        "margin_list": [1.0, 0.0, 0.4],
        "batch_size": 128,
        "lr": 0.1,
        "num_image": 12_720_066,
        "num_epoch": 20,
    },
    "webface42m_r50.yaml": {
        "network": "r50",
        "sample_rate": 0.2,
        "batch_size": 512,
        "lr": 0.4,
        "num_epoch": 20,
        "warmup_epoch": 2,
        **WEBFACE42M,
    },
    "webface42m_vit_b.yaml": {**VIT_B, **WEBFACE42M},
    "glint360k_vit_b_lvface.yaml": {**VIT_B, "num_image": 17_091_657},
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_loads_and_says_where_it_is_from_what_to_expect_how_long_and_how_to_run_it(name: str) -> None:
    head = (FOLDER / name).read_text().partition("\nseed:")[0]
    assert all(line.startswith("# ") for line in head.splitlines())
    assert re.findall(r"^# (\w+): ", head, re.MULTILINE)[:4] == ["Source", "Expected", "Hours", "Command"]
    load_recipe(FOLDER / name)


@pytest.mark.parametrize("name", SETS)
def test_it_is_planned(name: str) -> None:
    identities, ranks = SETS[name]
    recipe = load_recipe(FOLDER / name)
    job, network = job_of(recipe, identities, ranks), network_of(recipe.backbone, image_size(name), bf16=True)
    assert 2**30 < peak(job, network)[1] < 80 * 2**30, "a GPU of 80 GiB"
    gpus = re.search(r"--num_gpus (\d+)", (FOLDER / name).read_text())
    assert gpus is None or int(gpus[1]) == ranks


@pytest.mark.parametrize("name", SETS)
def test_its_hours_are_those_of_the_multiply_adds_at_the_measured_rate(name: str) -> None:
    recipe, (_, gpus) = load_recipe(FOLDER / name), SETS[name]
    measured, size, rate = MEASURED[recipe.precision]
    work = macs(recipe.backbone, image_size(name)) / macs(backbone_of(measured), size)
    hours = recipe.optimizer.steps * recipe.data.global_batch * work / (rate * gpus) / 3600
    text = f"# Hours: at least {hours:.2g} on {gpus} H100, reckoned from the network alone (docs/planning.md)."
    assert text in (FOLDER / name).read_text().splitlines()


def image_size(name: str) -> tuple[int, int]:
    return (112, 96) if name.startswith("casia") else (112, 112)


def backbone_of(name: str) -> Backbone:
    return load_recipe(FOLDER / "demo.yaml", [f"backbone={name}"]).backbone


def macs(backbone: Backbone, size: tuple[int, int]) -> int:
    with torch.device("meta"):
        return count_macs(backbone.build(size), size)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_what_the_config_converts_to(name: str) -> None:
    """Its first phase, but for where things lie, and the fused update, which changes nothing but memory."""
    recipe = load_recipe(FOLDER / name)
    converted = convert(Assignments(COMMON | CONFIGS[name]), SETS[name][1], Path("/shards")).recipe
    changes = {"shards": converted.data.shards}
    assert recipe.data.model_copy(update=changes) == converted.data
    assert recipe.head.model_copy(update={"fused_update": False, "phases": ()}) == converted.head
    first = {"phases": (), "steps": min([recipe.optimizer.steps, *(phase.start for phase in recipe.optimizer.phases)])}
    assert recipe.optimizer.model_copy(update=first) == converted.optimizer
    for key in ("seed", "precision", "backbone"):
        assert getattr(recipe, key) == getattr(converted, key), key


def test_adaface_has_the_schedule_and_the_augmentation_of_the_authors_script() -> None:
    """Batch 512, 26 epochs, milestones at 12, 20 and 24; crop, low resolution and colours, each for a fifth."""
    recipe = load_recipe(FOLDER / "ms1mv3_r100_adaface.yaml")
    epoch = 5_179_510 // 512
    assert (recipe.data.global_batch, recipe.optimizer.steps) == (512, 26 * epoch)
    assert recipe.optimizer.milestones == (12 * epoch, 20 * epoch, 24 * epoch)
    drawn = [(augmentation.name, augmentation.probability) for augmentation in recipe.data.augment]
    assert drawn == [("window", 0.2), ("low_resolution", 0.2), ("colour", 0.2), ("mirror", 0.5)]


def test_lvface_samples_classes_first_and_ends_with_all_of_them_at_a_lower_rate() -> None:
    recipe = load_recipe(FOLDER / "glint360k_vit_b_lvface.yaml")
    (head,), (rate,) = recipe.head.phases, recipe.optimizer.phases
    assert head.start == rate.start < recipe.optimizer.steps
    assert [recipe.head.sample_rate_at(step) for step in (0, head.start - 1, head.start)] == [0.3, 0.3, 1]
    assert rate.learning_rate < recipe.optimizer.learning_rate


def test_every_recipe_of_a_known_set_is_planned() -> None:
    assert set(RECIPES) - SETS.keys() == set(UNPLANNED)
