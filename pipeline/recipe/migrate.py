"""Recipes of older versions as today's: the one place that knows keys of before.

Until the margin became a section of its own, the keys of every margin lay side by side in ``head``, and a saved recipe
had them all, read or not. Until there were other augmentations, ``data.mirror`` was true or false.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pipeline.head.margins import MARGINS

# A key of before, and what it is now; in a phase the names did not change.
_OF_MARGIN = (
    *("m", "scale", "angle", "cosine", "detached"),
    *("lambda_max", "lambda_min", "lambda_gamma", "lambda_power"),
)
NEW_KEYS = {f"head.{key}": f"head.margin.{key}" for key in _OF_MARGIN} | {"data.mirror": "data.augment"}


def migrate(tree: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Keys and values of a recipe as today's version reads them, and which keys moved, as (old, new).

    Keys that the chosen margin does not read are dropped with no mention. A recipe without keys of before comes back as
    it is, and so does a section that is no section: the fault is for validation to report.
    """
    moved: list[tuple[str, str]] = []
    for name, migrated in (("data", _data), ("head", _margin_section)):
        section = tree.get(name)
        if isinstance(section, dict):
            section, keys = migrated(section)
            tree, moved = tree | {name: section}, moved + keys
    return tree, moved


def _data(data: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    mirror = data.get("mirror")
    if not isinstance(mirror, bool) or "augment" in data:
        return data, []  # no recipe of before, and no recipe of today
    augment = [{"name": "mirror", "probability": 0.5}] if mirror else []
    return _without(data, ["mirror"]) | {"augment": augment}, [("data.mirror", "data.augment")]


def _margin_section(head: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    old = {key: value for key, value in head.items() if f"head.{key}" in NEW_KEYS}
    name: Any = head.get("margin", MARGINS.default)
    # A section beside keys of before is no recipe of before, and no recipe of today: they are refused by name.
    if not old or name not in MARGINS:
        return head, []
    margin: dict[str, Any] = {"name": name}
    moved = []
    for key, value in old.items():
        if key in MARGINS[name].model_fields:
            margin[key] = value
            moved.append((f"head.{key}", NEW_KEYS[f"head.{key}"]))
    rest = _without(head, [*old, "margin", "phases"])
    phases = [_phase(phase, name) for phase in head.get("phases") or ()]
    return {"margin": margin, "phases": phases} | rest, moved


def _without(section: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in keys}


def _phase(phase: Any, name: str) -> Any:
    """A phase without the keys that the margin does not read, and without those that were null: as in the head."""
    if not isinstance(phase, dict):
        return phase
    unread = {key.partition(".")[2] for key in NEW_KEYS} - MARGINS[name].model_fields.keys()
    return {key: value for key, value in phase.items() if key not in unread and value is not None}
