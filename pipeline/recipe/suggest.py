"""What somebody may have meant by a key that a recipe does not have."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from pipeline.recipe.migrate import NEW_KEYS
from pipeline.recipe.schema import Recipe
from pipeline.section import Choices, NamedSection, Section

# The last word of a key as other trainers have it -> the key here.
OTHER_NAMES = {
    **dict.fromkeys(("lr", "base_lr"), "optimizer.learning_rate"),
    **dict.fromkeys(("wd", "l2"), "optimizer.weight_decay"),
    **dict.fromkeys(("epochs", "num_epoch", "num_epochs", "max_epochs", "max_steps"), "optimizer.steps"),
    **dict.fromkeys(("warmup", "warmup_epoch", "warmup_epochs"), "optimizer.warmup_steps"),
    **dict.fromkeys(("scheduler", "lr_scheduler"), "optimizer.milestones or optimizer.power"),
    **dict.fromkeys(("grad_clip", "max_norm", "max_grad_norm"), "optimizer.clip_norm"),
    **dict.fromkeys(("batch_size", "batch"), "data.global_batch, over all ranks"),
    **dict.fromkeys(("gradient_acc", "accumulate_grad_batches", "gradient_accumulation_steps"), "data.accumulation"),
    **dict.fromkeys(("rec", "data_dir", "dataset", "root"), "data.shards"),
    **dict.fromkeys(("num_workers", "workers"), "data.decode_threads"),
    **dict.fromkeys(("fp16", "bf16", "amp", "dtype"), "precision"),
    **dict.fromkeys(("network", "arch", "model"), "backbone.name"),
    **dict.fromkeys(("embedding_size", "num_features", "feat_dim"), "backbone.embedding_dim"),
    **dict.fromkeys(("loss", "margin_list"), "head.margin"),
    "s": "head.margin.scale",
    "random_seed": "seed",
    "frequent": "log.every",
    "val_targets": "evaluation.sets",
}


def suggestion(location: tuple[Any, ...], section: type[Section] | None) -> str:
    """The end of a line about the unknown key at `location`, inside the choice `section` if it lies in one."""
    if now := NEW_KEYS.get(".".join(map(str, location))):
        return f"; it is {now} now"
    inside: Any = section or section_at(location[:-1])
    key, fields = str(location[-1]), inside.model_fields
    if issubclass(inside, NamedSection):
        table = inside.table
        owners = [name for name in table if key in table[name].model_fields]
        if owners:
            return f"; a key of {', '.join(owners)} only"
    if other := OTHER_NAMES.get(key):
        return f"; it is {other}"
    if near := difflib.get_close_matches(key, fields, n=1):
        return f"; did you mean {near[0]}?"
    if elsewhere := [path for path in sorted(set(_paths(Recipe, ""))) if path.rpartition(".")[2] == key]:
        depth = min(path.count(".") for path in elsewhere)  # what is meant is hardly a phase's
        return f"; did you mean {' or '.join([path for path in elsewhere if path.count('.') == depth][:3])}?"
    return f"; wanted one of {', '.join(fields)}"


def choices_in(field: FieldInfo) -> Choices[Any] | None:
    """The table that a field's section, or each of a tuple of them, is chosen from; None for all other fields."""
    metadata = list(field.metadata)
    for item in get_args(field.annotation):
        metadata += getattr(item, "__metadata__", ())
    return next((extra for extra in metadata if isinstance(extra, Choices)), None)


def section_in(annotation: Any) -> type[Section] | None:
    """The section that a field holds, alone or in a tuple or a mapping; None if it holds values."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


def section_at(location: tuple[Any, ...]) -> Any:
    """The section of the recipe at `location`."""
    section: Any = Recipe
    for part in location:
        if isinstance(section, type) and issubclass(section, Section):
            section = section.model_fields[part].annotation
        else:  # `part` is a place in a tuple of sections, or a name in a mapping to them
            section = section_in(section)
    return section


def _paths(section: type[Section], prefix: str) -> Iterator[str]:
    """Every key of a section and of those inside it, as ``--set`` writes them."""
    for name, field in section.model_fields.items():
        yield prefix + name
        table, inner = choices_in(field), section_in(field.annotation)
        sections = table.by_section() if table else [inner] if inner else []
        for below in sections:
            yield from _paths(below, f"{prefix}{name}.")
