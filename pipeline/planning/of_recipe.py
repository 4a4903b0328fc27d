"""Recipes and backbones as the planner knows them: plain numbers."""

from __future__ import annotations

from functools import cache

import torch

from pipeline.backbones import Backbone
from pipeline.backbones.size import activation_bytes, count_macs
from pipeline.planning.job import Job, Network
from pipeline.recipe.schema import Recipe, RecipeError


def job_of(recipe: Recipe, num_classes: int, num_ranks: int, device: str = "cuda") -> Job:
    """A step of the recipe, as the ranks see it that share the classes among them: all, unless `head.ranks` says less.

    Raises:
        ValueError: when batch, classes and ranks do not go together.
    """
    sharing = recipe.head.ranks or num_ranks
    return Job(
        classes=num_classes,
        embedding_dim=recipe.backbone.embedding_dim,
        global_batch=recipe.data.global_batch * sharing // num_ranks,
        ranks=sharing,
        block=recipe.head.block,
        accumulation=recipe.data.accumulation,
        zero_stage=recipe.zero_stage,
        bf16=recipe.precision == "bfloat16",
        fused_update=recipe.head.fused_update,
        slots=recipe.optimizer.slots_per_number(),
        row_slots=recipe.optimizer.slots_per_row(),
        device=device,
    )


def whole_job_of(recipe: Recipe, num_classes: int, num_ranks: int) -> Job:
    """A step of the recipe, whose classes all ranks share.

    Raises:
        RecipeError: if groups of them do: what groups exchange is not planned.
        ValueError: when batch, classes and ranks do not go together.
    """
    if recipe.head.ranks not in (None, num_ranks):
        raise RecipeError(
            f"head.ranks: got {recipe.head.ranks}, wanted all {num_ranks}, or null: groups are not planned"
        )
    return job_of(recipe, num_classes, num_ranks)


@cache
def network_of(backbone: Backbone, image_size: tuple[int, int], bf16: bool) -> Network:
    """A backbone's numbers, from its shapes alone.

    Raises:
        ValueError: for an impossible image size.
    """
    with torch.device("meta"):
        module = backbone.build(image_size)
    return Network(
        parameters=sum(p.numel() for p in module.parameters()),
        activation_bytes=activation_bytes(module, image_size, torch.bfloat16 if bf16 else torch.float32),
        macs=count_macs(module, image_size),
        largest_parameter=max(p.numel() for p in module.parameters()),
    )
