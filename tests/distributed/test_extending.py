"""Everything from outside at once: a run of toys trains, saves, is killed, resumes bit for bit, and is planned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from pipeline import planning
from pipeline.planning.of_recipe import job_of, network_of
from pipeline.reading.augment import Mirror
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Checkpoint, Data, Head, Recipe
from pipeline.run.checkpoint import complete_steps
from pipeline.run.folder import RunFolder
from tests.distributed.ranks import run_ranks
from tests.distributed.test_head_seams import NormMargin
from tests.distributed.test_optimizer import ToyAdam
from tests.distributed.test_seams import Contrast, DroppingBackbone
from tests.distributed.trainer import losses_of, trainer_of
from tests.faces import write_shards

STEPS, SAVED, KILLED = 8, 4, 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


def recipe(shards: Path, zero_stage: Literal[0, 1, 3] = 0) -> Recipe:
    augment = (Mirror(name="mirror"), Contrast(name="toy_contrast"))
    return Recipe(
        seed=3,
        data=Data(shards=shards, global_batch=12, streams=2, decode_threads=1, augment=augment),
        backbone=DroppingBackbone(name="toy_dropping", embedding_dim=8),
        head=Head(margin=NormMargin(scale=8)),
        optimizer=ToyAdam(steps=STEPS, learning_rate=0.01),
        checkpoint=Checkpoint(every=SAVED),
        zero_stage=zero_stage,
    )


def train_on(
    rank: int, ranks: int, plan: Recipe, run: Path, resume: int | None = None, kill_after: int | None = None
) -> dict[str, Any]:
    trainer = trainer_of(rank, ranks, plan, run, resume)
    losses = losses_of(trainer, kill_after)
    return {
        "losses": losses,
        "rows": trainer.head.weight_SD.detach().clone(),
        "margin": trainer.head.state,
        "backbone": {name: value.clone() for name, value in trainer.engine.parameters().items()},
    }


@pytest.mark.parametrize(("ranks", "zero_stage"), [(1, 0), (2, 0), (3, 1), (2, 3)])
def test_a_run_of_toys_is_killed_and_resumes_bit_for_bit(
    shards: Path, tmp_path: Path, ranks: int, zero_stage: Literal[0, 1, 3]
) -> None:
    plan = recipe(shards, zero_stage)
    whole = run_ranks(train_on, ranks, plan, tmp_path / "whole")
    with pytest.raises(AssertionError, match="died without an answer"):
        run_ranks(train_on, ranks, plan, tmp_path / "killed", None, KILLED)
    assert complete_steps(tmp_path / "killed")[-1] == SAVED
    resumed = run_ranks(train_on, ranks, plan, tmp_path / "killed", SAVED)
    for want, got in zip(whole, resumed, strict=True):
        assert got["losses"] == want["losses"][SAVED:]
        assert torch.equal(got["rows"], want["rows"])
        assert got["margin"].keys() == {"norm", "cosine"}
        for part in ("margin", "backbone"):
            for name, value in want[part].items():
                assert torch.equal(got[part][name], value), name
    job, network = job_of(plan, 7, ranks), network_of(plan.backbone, (32, 32), False)
    saved = sum(file.stat().st_size for file in RunFolder(tmp_path / "killed").checkpoint(STEPS).glob("*.safetensors"))
    # what is beside the numbers: each file's header, its tensors' names
    assert planning.checkpoint_bytes(job, network) == pytest.approx(saved, abs=4096)


def test_a_recipe_file_names_every_toy(shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe(shards).to_yaml())
    assert re.findall(r"toy_\w+", file.read_text()) == ["toy_contrast", "toy_dropping", "toy_norm_margin", "toy_adam"]
    assert load_recipe(file, []) == recipe(shards)
