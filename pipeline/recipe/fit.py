"""Whether a recipe goes with a set, its images and the ranks: what only shows once these are known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.backbones import Backbone
from pipeline.backbones.batch_norm import batch_norms
from pipeline.backbones.frozen import freeze
from pipeline.recipe.schema import Recipe, RecipeError


def check_against_set(
    recipe: Recipe, *, samples: int, identities: int, image_size: tuple[int, int], num_ranks: int
) -> None:
    """Refuse what only shows once the shards and the ranks are known.

    Raises:
        RecipeError: naming the key, the value got and the value wanted.
    """
    parts = num_ranks * recipe.data.accumulation
    if recipe.data.global_batch % parts:
        raise RecipeError(
            f"data.global_batch: got {recipe.data.global_batch}, wanted a multiple of {parts} "
            f"({num_ranks} ranks × accumulation {recipe.data.accumulation})"
        )
    _check_batch_norms(recipe, image_size, num_ranks)
    _check_frozen(recipe, image_size)
    sharing = recipe.head.ranks or num_ranks
    if num_ranks % sharing:
        raise RecipeError(f"head.ranks: got {sharing}, wanted a divisor of {num_ranks} ranks")
    if samples < recipe.data.global_batch:
        raise RecipeError(f"data.global_batch: got {recipe.data.global_batch}, wanted at most the {samples} samples")
    if identities < 2:
        raise RecipeError(f"data.shards: got {identities} identity, wanted at least 2 to tell apart")
    if identities < sharing:
        raise RecipeError(
            f"data.shards: got {identities} identities, wanted at least one for each of {sharing} ranks; "
            "start fewer ranks"
        )


@contextmanager
def backbone_faults(backbone: Backbone) -> Iterator[None]:
    """What a network refuses while it is built is refused as of the recipe: its keys lie below ``backbone``."""
    try:
        yield
    except ValueError as error:
        key = str(error).partition(":")[0]
        raise RecipeError(f"backbone.{error}" if key in type(backbone).model_fields else str(error)) from None


def _check_frozen(recipe: Recipe, image_size: tuple[int, int]) -> None:
    """Refuse names of modules that the network does not have."""
    if recipe.backbone.frozen:
        with torch.device("meta"), backbone_faults(recipe.backbone):
            freeze(recipe.backbone.build(image_size), recipe.backbone.frozen)


def _check_batch_norms(recipe: Recipe, image_size: tuple[int, int], num_ranks: int) -> None:
    """Refuse a batch norm of one image, and synchronised batch norms of a network that has none."""
    accumulation, synchronised = recipe.data.accumulation, recipe.backbone.batch_norm == "synchronised"
    normalised = recipe.micro_batch(num_ranks) * (num_ranks if synchronised else 1)
    if normalised > 1 and not synchronised:
        return  # whether there is a batch norm is only known once the network is built
    with torch.device("meta"), backbone_faults(recipe.backbone):
        has_norms = bool(batch_norms(recipe.backbone.build(image_size)))
    if synchronised and not has_norms:
        raise RecipeError(
            f"backbone.batch_norm: got synchronised, wanted local: {recipe.backbone.name} has no batch norm"
        )
    if normalised == 1 and has_norms:
        wanted = 2 * accumulation * (1 if synchronised else num_ranks)
        other = "" if synchronised or num_ranks == 1 else ", or backbone.batch_norm synchronised"
        raise RecipeError(
            f"data.global_batch: got {recipe.data.global_batch}, wanted at least {wanted} "
            f"({num_ranks} ranks × accumulation {accumulation}){other}: the batch norms of {recipe.backbone.name} "
            "have no variance of one image at a time"
        )
