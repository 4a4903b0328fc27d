"""A vision transformer with all that draws or keeps statistics: killed, resumed, on the same ranks and on others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.head.margins.adaface import AdaFace
from pipeline.optim.adamw import AdamW
from pipeline.reading.augment import Mirror
from pipeline.recipe.schema import Checkpoint, Data, Head, Recipe
from tests.distributed.ranks import run_ranks
from tests.distributed.test_seams import Contrast
from tests.distributed.trainer import losses_of, trainer_of
from tests.faces import write_shards
from tests.tiny_vit import TinyViTBackbone

STEPS, SAVED, KILLED = 9, 4, 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


def recipe(shards: Path, drop_path: float = 0.3) -> Recipe:
    return Recipe(
        seed=3,
        data=Data(
            shards=shards,
            global_batch=12,
            streams=2,
            decode_threads=1,
            augment=(Mirror(name="mirror"), Contrast(name="toy_contrast")),
        ),
        backbone=TinyViTBackbone(
            name="tiny_vit",
            embedding_dim=8,
            drop_path=drop_path,
            mask_ratio=0.3,
            batch_norm="synchronised",
            activation_checkpointing=True,
        ),
        head=Head(margin=AdaFace(scale=16, rate=0.1)),
        # A gradient near 0 keeps its sign through rounding only if ε is larger.
        optimizer=AdamW(steps=STEPS, learning_rate=0.003, warmup_steps=2, cosine=True, norm_weight_decay=0, eps=1e-3),
        checkpoint=Checkpoint(every=SAVED),
    )


def train(
    rank: int, ranks: int, plan: Recipe, run: Path, resume: int | None = None, kill_after: int | None = None
) -> dict[str, Any]:
    trainer = trainer_of(rank, ranks, plan, run, resume)
    losses = losses_of(trainer, kill_after, draws=rank + 1)
    state = {name: tensor.clone() for name, tensor in trainer.engine.parameters().items()}
    state |= {f"{name} of margin": tensor.clone() for name, tensor in trainer.head.state.items()}
    return {"losses": losses, "state": state, "rows": trainer.head.weight_SD.detach().clone()}


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two ranks, never interrupted."""
    return run_ranks(train, 2, recipe(shards), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def killed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two ranks that died."""
    run = tmp_path_factory.mktemp("killed")
    with pytest.raises(AssertionError):
        run_ranks(train, 2, recipe(shards), run, None, KILLED)
    return run


def test_on_the_same_ranks_it_goes_on_bit_for_bit(
    shards: Path, whole: list[dict[str, Any]], killed: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    again = run_ranks(train, 2, recipe(shards), run, SAVED)
    for one, other in zip(whole, again, strict=True):
        assert one["losses"][SAVED:] == other["losses"]
        assert one["state"].keys() == other["state"].keys()
        assert [name for name, tensor in one["state"].items() if not torch.equal(tensor, other["state"][name])] == []
        assert torch.equal(one["rows"], other["rows"])


@pytest.mark.parametrize("ranks", [1, 3])
def test_on_other_ranks_the_losses_are_the_same(
    shards: Path, whole: list[dict[str, Any]], killed: Path, tmp_path: Path, ranks: int
) -> None:
    run = shutil.copytree(killed, tmp_path / "run")
    again = run_ranks(train, ranks, recipe(shards), run, SAVED)
    assert again[0]["losses"] == pytest.approx(whole[0]["losses"][SAVED:], rel=1e-5)


def test_what_is_dropped_matters(shards: Path, whole: list[dict[str, Any]], tmp_path: Path) -> None:
    (plain,) = run_ranks(train, 1, recipe(shards, drop_path=0.0), tmp_path)
    assert abs(plain["losses"][0] - whole[0]["losses"][0]) > 1e-3
