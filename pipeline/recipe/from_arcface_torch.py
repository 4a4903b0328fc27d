"""Recipes out of InsightFace's ``arcface_torch``: its ``configs/*.py``, read without running them.

What a key means was read in that project's ``train_v2.py``, ``losses.py``, ``partial_fc_v2.py`` and
``lr_scheduler.py``. If it trains otherwise than we do, a note says how.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.recipe.file import recipe_of
from pipeline.recipe.schema import Recipe, RecipeError

NETWORKS = {f"r{layers}": f"iresnet{layers}" for layers in (18, 34, 50, 100, 200)}
NEEDED = ("margin_list", "network", "batch_size", "lr", "num_image", "num_epoch", "rec")

# What that trainer has, whatever its config says: its SGD, and the norm to which it clips the backbone's gradient.
MOMENTUM = 0.9
CLIP_NORM = 5.0

# What that project's own defaults (configs/base.py) say of keys that a config leaves out.
DEFAULTS: dict[str, Any] = {
    "embedding_size": 512,
    "sample_rate": 1.0,
    "interclass_filtering_threshold": 0,
    "fp16": False,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "gradient_acc": 1,
    "seed": 2048,
    "warmup_epoch": 0,
    "frequent": 10,
    "verbose": 2000,
    "val_targets": (),
}


@dataclass(frozen=True)
class Converted:
    """A recipe, and what to know when moving, a line each."""

    recipe: Recipe
    notes: tuple[str, ...]


def read_config(path: Path) -> dict[str, Any]:
    """The keys of a config, over those of ``base.py`` beside it; only assignments of plain values are understood.

    Raises:
        RecipeError: the file is missing, is not Python, or sets a key to something that must be computed.
    """
    base = path.with_name("base.py")
    keys = _assignments(base) if base.is_file() and base != path else {}
    return DEFAULTS | keys | _assignments(path)


def convert(config: dict[str, Any], ranks: int, shards: Path, *, power: float = 1.0) -> Converted:
    """The recipe that trains as `config` does on `ranks` GPUs.

    Args:
        config: as `read_config` gives it.
        ranks: GPUs that the config was meant for: its batch is that of one of them.
        shards: where the shards of its data are, or will be.
        power: of the fall of the learning rate: 1 in today's ``lr_scheduler.py``, 2 in that of before.

    Raises:
        RecipeError: for a key that is missing or that has no counterpart here, naming the value got.
    """
    if missing := [key for key in NEEDED if config.get(key) is None]:
        raise RecipeError(f"{missing[0]}: not set, wanted by the schedule, the network or the data")
    for key, got, wanted in (
        ("network", config["network"], NETWORKS),
        ("optimizer", config["optimizer"], ("sgd", "adamw")),
        ("interclass_filtering_threshold", config["interclass_filtering_threshold"], (0,)),
    ):
        if got not in wanted:
            raise RecipeError(f"{key}: got {got!r}, wanted {' or '.join(map(str, wanted))}")
    calls = config["num_image"] // (config["batch_size"] * ranks)
    parts = config["gradient_acc"]
    recipe = recipe_of(
        {
            "seed": config["seed"],
            "precision": "bfloat16" if config["fp16"] else "float32",
            "data": {
                "shards": shards,
                "global_batch": config["batch_size"] * ranks * parts,
                "accumulation": parts,
                "streams": _divisor(config["batch_size"], 16),
            },
            "backbone": {"name": NETWORKS[config["network"]], "embedding_dim": config["embedding_size"]},
            "head": {"sample_rate": config["sample_rate"], "margin": _margin(*config["margin_list"])},
            "optimizer": {
                "name": config["optimizer"],
                "steps": calls * config["num_epoch"] // parts,
                "learning_rate": config["lr"],
                "warmup_steps": calls * config["warmup_epoch"] // parts,
                "power": power,
                "weight_decay": config["weight_decay"],
                "clip_norm": CLIP_NORM,
                **({"momentum": MOMENTUM} if config["optimizer"] == "sgd" else {}),
            },
            "checkpoint": {"every": config["verbose"]},
            "evaluation": {"sets": {name: _places(name, shards) for name in config["val_targets"]}},
            "log": {"every": config["frequent"]},
        }
    )
    return Converted(recipe, tuple(_notes(config, recipe)))


def _assignments(path: Path) -> dict[str, Any]:
    """``config.key = value`` of a file, in order."""
    try:
        tree = ast.parse(path.read_text())
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; wanted a config of arcface_torch") from None
    except SyntaxError as error:
        raise RecipeError(f"{path}: line {error.lineno}: not Python") from None
    keys: dict[str, Any] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(target := node.targets[0], ast.Attribute):
            continue
        try:
            keys[target.attr] = ast.literal_eval(node.value)
        except ValueError:
            raise RecipeError(
                f"{path}: line {node.lineno}: {target.attr}: got {ast.unparse(node.value)}, wanted a plain value"
            ) from None
    return keys


def _margin(m: float, angle: float, cosine: float) -> dict[str, Any]:
    """Our margin for ``CombinedMarginLoss(64, m, angle, cosine)``."""
    if (m, cosine) == (1.0, 0.0):
        return {"name": "arcface", "angle": angle, "scale": 64.0}
    if (m, angle) == (1.0, 0.0):
        return {"name": "cosface", "cosine": cosine, "scale": 64.0}
    return {"name": "combined", "m": m, "angle": angle, "cosine": cosine, "scale": 64.0}


def _places(name: str, shards: Path) -> dict[str, Path]:
    """The folder into which the notes unpack a ``.bin``, beside the shards, and its pairs file."""
    return {"images": shards.parent / name, "pairs": shards.parent / f"{name}.tsv"}


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(divisor for divisor in range(min(most, number), 0, -1) if number % divisor == 0)


def _notes(config: dict[str, Any], recipe: Recipe) -> list[str]:
    rec = config["rec"]
    notes = [f"shards: python stages/shard.py {rec} {recipe.data.shards}"]
    for name, places in recipe.evaluation.sets.items():
        unpack = f"python stages/pairs.py bin {rec}/{name}.bin {places.pairs} --images {places.images}"
        notes.append(f"val_targets: {unpack}")
    notes.append("margin: beyond π the target logit keeps falling here; there it rises again")
    if config["fp16"]:
        notes.append("precision: fp16 with a loss scale became bfloat16, which needs none")
    if config["sample_rate"] == 1:
        notes.append("memory: head.fused_update: true saves a third of the head's")
    if config["optimizer"] == "sgd" and config["momentum"] != MOMENTUM:
        notes.append(
            f"momentum: got {config['momentum']}, which arcface_torch does not read: it trains with {MOMENTUM}"
        )
    return notes
