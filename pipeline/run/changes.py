"""What may change in the recipe when a run is resumed, and what may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.recipe.migrate import migrate
from pipeline.recipe.schema import Recipe, RecipeError
from pipeline.run.folder import RunFolder

# These decide which sample stands at which position: with another value it would be another run.
FIXED = ("seed", "data.global_batch", "data.streams", "data.window")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``: a recipe's keys as ``--set`` writes them."""
    keys: dict[str, Any] = {}
    for name, value in tree.items():
        keys |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return keys


def changes(run: Path, recipe: Recipe) -> list[str]:
    """The keys that differ from the recipe saved in the run's folder, as ``key: old → new``.

    A key that the saved recipe does not have, because an older version wrote it, is no change.

    Raises:
        RecipeError: when one of `FIXED` changed.
    """
    file = RunFolder(run).recipe
    try:
        tree, _ = migrate(yaml.safe_load(file.read_text()))
        saved = flat(tree)
    except (OSError, yaml.YAMLError, AttributeError):
        return []  # lost or damaged: the checkpoint still says whether it fits
    now = flat(recipe.model_dump(mode="json"))
    changed = [key for key in now if key in saved and saved[key] != now[key]]
    for key in FIXED:
        if key in changed:
            raise RecipeError(
                f"{key}: got {now[key]}, wanted {saved[key]} as in {file}: it decides the order of the "
                "samples; start another run with --run"
            )
    return [f"{key}: {saved[key]} → {now[key]}" for key in changed]
