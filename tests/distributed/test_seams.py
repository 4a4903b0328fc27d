"""A backbone and an augmentation from outside: they train, and a resumed run draws the same numbers, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import nn

from pipeline.backbones import BACKBONES, Backbone
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.optim.sgd import SGD
from pipeline.reading.augment import Mirror
from pipeline.reading.augmentation import AUGMENTATIONS, Augmentation, Parameters, Size, Uniform
from pipeline.recipe.schema import Checkpoint, Data, Head, Recipe
from tests.distributed.ranks import run_ranks
from tests.distributed.trainer import losses_of, trainer_of
from tests.faces import write_shards

STEPS = 10


class Dropping(nn.Module):
    """Images to embeddings by way of dropout, whose masks it remembers."""

    def __init__(self, embedding_dim: int, image_size: tuple[int, int], rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(rate)
        self.project = nn.Linear(3 * image_size[0] * image_size[1], embedding_dim)
        self.masks: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mask = self.dropout(torch.ones_like(images))
        self.masks.append(mask[0] > 0)
        return self.project((images * mask).flatten(1))


@BACKBONES.add("toy_dropping")
class DroppingBackbone(Backbone):
    """A toy whose forward pass draws random numbers."""

    rate: float = Field(0.5, ge=0, lt=1)
    """Share of the pixels that are dropped."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """See `Dropping`."""
        return Dropping(self.embedding_dim, image_size, self.rate)


@AUGMENTATIONS.add("toy_contrast")
class Contrast(Augmentation):
    """More or less contrast."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:  # noqa: ARG002
        """The factor, [B]."""
        return 0.2 + 0.8 * uniform(1)[:, 0]

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Pull towards grey."""
        return fn.contrast(pixels, contrast=parameters)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


def recipe(shards: Path, rate: float = 0.5, accumulation: int = 1, augment: tuple[Augmentation, ...] = ()) -> Recipe:
    return Recipe(
        seed=3,
        data=Data(
            shards=shards, global_batch=12, streams=2, decode_threads=1, accumulation=accumulation, augment=augment
        ),
        backbone=DroppingBackbone(name="toy_dropping", embedding_dim=8, rate=rate),
        head=Head(margin=ASoftmax(lambda_max=50, lambda_gamma=0.5)),
        optimizer=SGD(steps=STEPS, learning_rate=0.02),
        checkpoint=Checkpoint(every=4),
    )


def train(rank: int, ranks: int, plan: Recipe, run: Path, resume: int | None = None, draws: int = 0) -> dict[str, Any]:
    """Train to the end; between the steps something else draws random numbers."""
    trainer = trainer_of(rank, ranks, plan, run, resume)
    losses = losses_of(trainer, draws=draws)
    module = trainer.engine.module
    assert isinstance(module, Dropping)
    parameters = {name: tensor.clone() for name, tensor in trainer.engine.parameters().items()}
    return {"losses": losses, "masks": module.masks, "parameters": parameters}


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (2, 3)])
def test_a_resumed_run_with_dropout_equals_the_uninterrupted_one(
    shards: Path, tmp_path: Path, ranks: int, accumulation: int
) -> None:
    plan = recipe(shards, accumulation=accumulation)
    whole = run_ranks(train, ranks, plan, tmp_path / "whole")
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole", resumed)
    for step in (8, STEPS):  # as a run leaves its folder that is killed after step 4
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:08d}")
    again = run_ranks(train, ranks, plan, resumed, 4, 5)
    for one, other in zip(whole, again, strict=True):
        assert one["losses"][4:] == other["losses"]
        assert all(torch.equal(tensor, other["parameters"][name]) for name, tensor in one["parameters"].items())
    masks = [mask for result in whole for mask in result["masks"]]
    assert len(masks) == ranks * STEPS * accumulation
    for index, mask in enumerate(masks):
        # no two of ranks, steps and micro-batches draw alike
        assert all((mask == other).double().mean() < 0.6 for other in masks[:index])


def test_an_augmentation_from_outside_trains_alike_on_any_number_of_ranks(shards: Path, tmp_path: Path) -> None:
    augment = (Mirror(name="mirror"), Contrast(name="toy_contrast"))
    runs = [run_ranks(train, n, recipe(shards, 0, 1, augment), tmp_path / str(n))[0] for n in (1, 2, 3)]
    losses = [run["losses"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    plain = run_ranks(train, 1, recipe(shards, 0), tmp_path / "plain")[0]["losses"]
    assert abs(plain[0] - losses[0][0]) > 1e-3
