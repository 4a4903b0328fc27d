"""What may change in the recipe when a run is resumed, and what may not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from pipeline.reading.mixing import streams_that_mix
from pipeline.recipe.file import recipe_of
from pipeline.recipe.migrate import migrate
from pipeline.recipe.schema import Recipe, RecipeError
from pipeline.run.checkpoint import META, CheckpointError, Meta, complete_steps, read_meta
from pipeline.run.folder import RunFolder
from pipeline.shards.format.manifest import Manifest

# These decide which sample stands at which position: with another value it would be another run.
FIXED = ("seed", "data.global_batch", "data.streams", "data.window")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``: a recipe's keys as ``--set`` writes them."""
    keys: dict[str, Any] = {}
    for name, value in tree.items():
        keys |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return keys


def fixed_keys(recipe: Recipe) -> dict[str, Any]:
    """The keys that cannot change in the course of a run, with their values."""
    keys = flat(recipe.model_dump(mode="json"))
    return {key: keys[key] for key in FIXED}


def with_streams(run: Path, recipe: Recipe, manifest: Manifest) -> Recipe:
    """The recipe with a number in `data.streams`: that of the run in the folder, or for a new run one that mixes."""
    if recipe.data.streams is not None:
        return recipe
    data = recipe.data
    streams = _streams_of(run) or streams_that_mix(manifest, data.global_batch, data.window)
    return recipe.model_copy(update={"data": data.model_copy(update={"streams": streams})})


def _streams_of(run: Path) -> int | None:
    """With how many streams the run in a folder began; None if there is no checkpoint of it."""
    steps = complete_steps(run)
    if not steps:
        return None
    with suppress(CheckpointError):
        if fixed := read_meta(RunFolder(run).checkpoint(steps[-1])).fixed:
            return int(fixed["data.streams"])
    # One was the default when checkpoints did not say it yet.
    return int(saved_keys(run).get("data.streams") or 1)


def changes(run: Path, recipe: Recipe) -> list[str]:
    """The keys that differ from the recipe saved in the run's folder, as ``key: old → new``.

    A key that the saved recipe does not have, because an older version wrote it, is no change; neither is one inside a
    list, such as a phase's, if its value is today's default.
    """
    tree = _saved_tree(run)
    saved, now = flat(tree), flat(recipe.model_dump(mode="json"))
    with suppress(RecipeError):  # of a version that this one cannot read
        saved |= {key: value for key, value in flat(recipe_of(tree).model_dump(mode="json")).items() if key in saved}
    return [f"{key}: {saved[key]} → {now[key]}" for key in now if key in saved and saved[key] != now[key]]


def refuse_another_network(run: Path, recipe: Recipe) -> None:
    """Refuse another backbone than the run's before it is built: checkpoints would be refused by their tensors' names.

    Raises:
        RecipeError: it is another.
    """
    had, now = saved_keys(run).get("backbone.name"), recipe.backbone.name
    if had not in (None, now):
        raise RecipeError(
            f"backbone.name: got {now}, wanted {had} as in {RunFolder(run).recipe}; start another run with --run"
        )


def changes_since(run: Path, saved: Meta, now: Meta, recipe: Recipe) -> list[str]:
    """What differs from the checkpoint that the run resumes from, besides the recipe, as ``what: old → new``.

    Args:
        run: its folder; of a checkpoint that does not have the fixed keys, the recipe in the folder has them.
        saved: what the checkpoint says.
        now: what a checkpoint of the run as it is now would say.
        recipe: of the run as it is now.

    Raises:
        RecipeError: when one of `FIXED` changed, or the shards have and the recipe does not accept that.
    """
    fixed = saved.fixed or {key: value for key, value in saved_keys(run).items() if key in FIXED}
    where = RunFolder(run).checkpoint(saved.step) / META if saved.fixed else RunFolder(run).recipe
    for key, value in fixed.items():
        if now.fixed[key] != value:
            raise RecipeError(
                f"{key}: got {now.fixed[key]}, wanted {value} as in {where}: it decides the order of the samples; "
                "start another run with --run"
            )
    accepted = recipe.data.accept_shards is not None and now.shards_sha256.startswith(recipe.data.accept_shards)
    # Other people are refused when the rows are loaded: no key accepts them.
    same_people = saved.identities_sha256 == now.identities_sha256
    if same_people and saved.shards_sha256 not in ("", now.shards_sha256) and not accepted:
        raise RecipeError(
            f"data.shards: {recipe.data.shards}: got the set {now.shards_sha256[:12]}, wanted "
            f"{saved.shards_sha256[:12]} as in {where}; to resume with this one: "
            f"--set data.accept_shards={now.shards_sha256[:12]}"
        )
    pairs = {
        "shards": (saved.shards_sha256[:12], now.shards_sha256[:12]),
        "ranks": (saved.num_ranks, now.num_ranks),
        "threads": (saved.threads, now.threads),
        "device": (saved.device, now.device),
    }
    return [f"{what}: {old} → {new}" for what, (old, new) in pairs.items() if old not in ("", None, new)]


def saved_keys(run: Path) -> dict[str, Any]:
    """The keys of the recipe in a run's folder, by today's names; none if it is lost or damaged."""
    return flat(_saved_tree(run))


def _saved_tree(run: Path) -> dict[str, Any]:
    try:
        return migrate(yaml.safe_load(RunFolder(run).recipe.read_text()))[0]
    except (OSError, yaml.YAMLError, AttributeError):
        return {}  # lost or damaged: the checkpoint still says whether it fits
