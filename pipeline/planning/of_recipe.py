"""Recipes and backbones as the planner knows them: plain numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import chain

import torch

from cluster.cards import CARDS
from pipeline.backbones import Backbone
from pipeline.backbones.batch_norm import batch_norms
from pipeline.backbones.size import activation_bytes, count_macs
from pipeline.planning.job import FP32, Job, Network
from pipeline.planning.utilisation import Floors, floors
from pipeline.recipe.fit import backbone_faults
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
        exchange=recipe.exchange_dtype.itemsize,
        device=device,
        margin=recipe.head.margin,
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


def floors_of(
    recipe: Recipe, num_classes: int, num_ranks: int, image_size: tuple[int, int], card_name: str, sample_rate: float
) -> Floors | None:
    """The least seconds of a step of the recipe on a card, by the driver's name for it; None if its peak is not known.

    Of sampled classes (`sample_rate` of the step) as many as take part on average count.
    """
    card = CARDS.get(card_name)
    if card is None:
        return None
    job = job_of(recipe, num_classes, num_ranks)
    active = replace(job, classes=max(job.ranks, round(num_classes * sample_rate)))
    return floors(active, network_of(recipe.backbone, image_size, job.bf16), card)


@cache
def network_of(backbone: Backbone, image_size: tuple[int, int], bf16: bool) -> Network:
    """A backbone's numbers, from its shapes alone.

    Raises:
        RecipeError: if it cannot be built so, such as for an image size.
    """
    with torch.device("meta"), backbone_faults(backbone):
        module = backbone.build(image_size)
    dtype = torch.bfloat16 if bf16 else torch.float32
    blocks = backbone.blocks if backbone.activation_checkpointing else lambda _: ()
    norms, again = [], []
    if backbone.batch_norm == "synchronised":
        norms = batch_norms(module)
        again = list(chain.from_iterable(map(batch_norms, blocks(module))))  # those that are computed again
    forward = norms + again
    return Network(
        parameters=sum(p.numel() for p in module.parameters()),
        activation_bytes=activation_bytes(module, image_size, dtype, blocks),
        macs=count_macs(module, image_size),
        largest_parameter=max(p.numel() for p in module.parameters()),
        norm_reduces=len(forward) + len(norms),
        # two sums a channel and a count, in float64; backward two sums
        norm_bytes=sum(8 * (2 * norm.num_features + 1) for norm in forward)
        + sum(FP32 * 2 * norm.num_features for norm in norms),
    )
