"""Recipes out of InsightFace's ``arcface_torch``: what a config trains, in our keys.

A config's keys are read by `pipeline.recipe.arcface_config`. If that project trains otherwise than we do, or has a key
that we do not need, a note says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.backbones.backbone import THEIRS
from pipeline.recipe.arcface_config import ArcfaceConfig, Assignments
from pipeline.recipe.file import recipe_of
from pipeline.recipe.schema import Recipe

# Of the patches, if a network masks any: its forward pass does not hand on the ratio that its name and table give.
MASKED = 0.1


def _vit(size: str, drop_path: float, mask_ratio: float) -> dict[str, Any]:
    """The two larger ones are computed again in the backward pass."""
    again = {"activation_checkpointing": True} if size in "bl" else {}
    return {"name": f"vit_{size}", "drop_path": drop_path, "mask_ratio": mask_ratio, **again}


# Their networks, as keys of our backbone.
NETWORKS: dict[str, dict[str, Any]] = {
    **{theirs: {"name": ours} for theirs, ours in THEIRS.items()},
    "vit_t": _vit("t", 0.1, MASKED),
    "vit_t_dp005_mask0": _vit("t", 0.05, 0),
    "vit_s": _vit("s", 0.1, MASKED),
    "vit_s_dp005_mask_0": _vit("s", 0.05, 0),
    "vit_b": _vit("b", 0.1, MASKED),
    "vit_b_dp005_mask_005": _vit("b", 0.05, MASKED),
    "vit_l_dp005_mask_005": _vit("l", 0.05, MASKED),
}

# What that trainer has, whatever its config says: its scale, its SGD, and the norm to which it clips the backbone's
# gradient.
SCALE = 64.0
MOMENTUM = 0.9
CLIP_NORM = 5.0

# Keys that change nothing of what is trained, and what is there instead.
UNNEEDED = {
    "resume": "the same command resumes",
    "save_all_states": "every checkpoint has all",
    "output": "--run",
    "dali": "it always decodes",
    "num_workers": "data.decode_threads",
    "wandb_key": "a secret, not copied",
    "wandb_entity": "",
    "wandb_project": "",
    "wandb_log_all": "",
    "wandb_resume": "",
    "suffix_run_name": "",
    "notes": "",
    "save_artifacts": "",
}


@dataclass(frozen=True)
class Converted:
    """A recipe, and what to know when moving, a line each."""

    recipe: Recipe
    notes: tuple[str, ...]


def convert(assigned: Assignments, ranks: int, shards: Path, *, power: float = 1.0) -> Converted:
    """The recipe that trains as a config does on `ranks` GPUs.

    Args:
        assigned: as `read_config` gives it.
        ranks: GPUs that the config was meant for: its batch is that of one of them.
        shards: where the shards of its data are, or will be.
        power: of the fall of the learning rate: 1 in today's ``lr_scheduler.py``, 2 in that of before.

    Raises:
        RecipeError: for all that is unknown, missing or without a counterpart here, a line each.
    """
    config = assigned.checked()
    calls = config.num_image // (config.batch_size * ranks)
    parts = config.gradient_acc
    recipe = recipe_of(
        {
            "seed": config.seed,
            "precision": "bfloat16" if config.fp16 else "float32",
            "data": {
                "shards": shards,
                "global_batch": config.batch_size * ranks * parts,
                "accumulation": parts,
                "streams": _divisor(config.batch_size, 16),
                "augment": ["arcface_torch", "mirror"] if config.dali and config.dali_aug else ["mirror"],
            },
            "backbone": {**NETWORKS[config.network], "embedding_dim": config.embedding_size},
            "head": {"sample_rate": config.sample_rate, "margin": _margin(config)},
            "optimizer": {
                "name": config.optimizer,
                "steps": calls * config.num_epoch // parts,
                "warmup_steps": calls * max(config.warmup_epoch, 0) // parts,
                "power": power,
            }
            | _for_sums(config),
            "checkpoint": {"every": max(config.verbose // parts, 1)},
            "evaluation": {"sets": {name: _places(name, shards) for name in config.val_targets}},
            "log": {"every": max(config.frequent // parts, 1), "sinks": _sinks(config)},
        }
    )
    return Converted(recipe, tuple(_notes(config, recipe)))


def _for_sums(config: ArcfaceConfig) -> dict[str, float]:
    """Learning rate η, weight decay λ and clip norm for our gradient g, where theirs is k·g: k means, added up.

    A norm of k·g that is clipped to c is one of g clipped to c/k. SGD: η (k g + λ w) = k η (g + λ/k w). AdamW divides
    by the size of its gradients, and decays apart from them.
    """
    parts = config.gradient_acc
    if config.optimizer == "adamw":
        return {"learning_rate": config.lr, "weight_decay": config.weight_decay, "clip_norm": CLIP_NORM / parts}
    return {
        "momentum": MOMENTUM,
        "learning_rate": config.lr * parts,
        "weight_decay": config.weight_decay / parts,
        "clip_norm": CLIP_NORM / parts,
    }


def _margin(config: ArcfaceConfig) -> dict[str, Any]:
    """Our margin for ``CombinedMarginLoss(64, *margin_list, interclass_filtering_threshold)``.

    Its ArcFace computes the margin under ``no_grad``.
    """
    _, m2, m3 = config.margin_list
    common = {"scale": SCALE, "filter": config.interclass_filtering_threshold or None}
    if m3 > 0:
        return {"name": "cosface", "cosine": m3, **common}
    return {"name": "arcface", "angle": m2, "detached": True, **common}


def _sinks(config: ArcfaceConfig) -> list[dict[str, str]]:
    """W&B if the config uses it, in its project; the key stays where it is."""
    if not config.using_wandb:
        return []
    keys = {"name": "wandb", "project": config.wandb_project, "entity": config.wandb_entity}
    return [{key: value for key, value in keys.items() if value is not None}]


def _places(name: str, shards: Path) -> dict[str, Path]:
    """The folder into which the notes unpack a ``.bin``, beside the shards, and its pairs file."""
    return {"images": shards.parent / name, "pairs": shards.parent / f"{name}.tsv"}


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(divisor for divisor in range(min(most, number), 0, -1) if number % divisor == 0)


def _notes(config: ArcfaceConfig, recipe: Recipe) -> Iterator[str]:
    yield from _first_steps(config, recipe)
    yield from _differences(config)
    yield from _left_out(config)


def _first_steps(config: ArcfaceConfig, recipe: Recipe) -> Iterator[str]:
    """How its data becomes ours."""
    yield f"shards: {_command('shard.py', config.rec, recipe.data.shards)}"
    for name, places in recipe.evaluation.sets.items():
        unpack = _command("pairs.py", "bin", f"{config.rec}/{name}.bin", places.pairs, "--images", places.images)
        yield f"val_targets: {unpack}"
    if config.num_classes is not None:
        yield f"num_classes: {config.num_classes:,} there; here as many as the shards have"
    if config.sample_rate == 1 and config.gradient_acc == 1:
        yield "memory: head.fused_update: true saves a third of the head's"


def _command(stage: str, *arguments: str | Path) -> str:
    return shlex.join(["python", f"stages/{stage}", *map(str, arguments)])


def _differences(config: ArcfaceConfig) -> Iterator[str]:
    """What is trained otherwise here."""
    m1, m2, m3 = config.margin_list
    if m3 == 0:
        yield "margin_list: beyond θ + margin = π the target logit keeps falling here; there it rises again"
    elif (m1, m2) != (1, 0):
        yield f"margin_list: {m1:g} and {m2:g} are not read there beside {m3:g}: CosFace"
    if config.network.startswith("vit"):
        yield "network: positions and mask token have no weight decay here; there they decay as all else does"
    if config.network.endswith("mask_005"):
        yield f"network: masks {MASKED:.0%} of the patches there too, whatever its name says"
    length = 0.01 * config.embedding_size**0.5
    times = f"{length**-2:.0f} times as far"
    yield f"rows: of length 1 at the start here, {length:.2g} there, where a first step turns them {times}"
    if config.sample_rate < 1:
        yield "sample_rate: of the classes that are not in the batch; there of all, those of the batch included"
        yield "sample_rate: rows that take no part in a step rest here; there momentum and weight decay move them on"
    yield "pixels: (x − 127.5) / 128 here, (x − 127.5) / 127.5 there"
    if config.dali and config.dali_aug:
        yield (
            "dali_aug: low resolution, hue, saturation and grey as there; the blur has any σ of 0.69 to 1.03, there "
            "one of the two"
        )
    if config.fp16:
        yield (
            "fp16: bfloat16 here, without a loss scale, also for the products of the last layer and of the head, which "
            "are float32 there"
        )
    yield "gradients: between GPUs as float16 there, whatever fp16 says"
    if config.warmup_epoch > 0:
        yield "warmup_epoch: there the very first step has the full rate; here the warm-up begins with it"
    if config.warmup_epoch < 0:
        yield f"warmup_epoch: {config.warmup_epoch} is as 0 there too"
    if (parts := config.gradient_acc) > 1:
        by = {"sgd": f"{parts} times the learning rate and a {parts}th of weight decay and clip norm"}
        same = by.get(config.optimizer, f"a {parts}th of the clip norm")
        yield f"gradient_acc: {parts} means are added there and averaged here: the same, by {same}"
    if config.optimizer == "sgd" and config.momentum != MOMENTUM:
        yield f"momentum: got {config.momentum}, which train_v2.py does not read: it trains with {MOMENTUM}"


def _left_out(config: ArcfaceConfig) -> Iterator[str]:
    """The keys that are not needed here, in a line."""
    found = [key for key in UNNEEDED if key in config.model_fields_set]
    if found:
        yield "not needed: " + ", ".join(f"{key} ({UNNEEDED[key]})" if UNNEEDED[key] else key for key in found)
