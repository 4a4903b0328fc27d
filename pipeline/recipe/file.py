"""Recipes as files: YAML in, ``--set a.b=c`` changes one key, and every fault is reported in a line.

A line names the key, the value got and the value wanted.
"""

from __future__ import annotations

import inspect
import json
import logging
import textwrap
from collections.abc import Iterator
from itertools import starmap
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError

from pipeline.recipe.migrate import migrate
from pipeline.recipe.schema import Recipe, RecipeError
from pipeline.recipe.suggest import choices_in, section_in, suggestion
from pipeline.section import Choices, NamedSection, Section, faults

logger = logging.getLogger(__name__)


def load_recipe(path: Path, changes: list[str] = []) -> Recipe:  # noqa: B006 - read only
    """The recipe in a YAML file, with ``a.b=value`` changes applied (values are YAML too).

    A file with keys of an older version is read too, and logged.

    Raises:
        RecipeError: one line a fault: key, value got, value wanted.
    """
    tree = read_yaml(path, "a recipe file", RecipeError)
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: got {type(tree).__name__}, wanted keys and values")
    tree, moved = migrate(tree)
    if moved:
        logger.info("%s: keys of an older version: %s", path, ", ".join(f"{old} is now {new}" for old, new in moved))
    for change in changes:
        _apply(tree, change)
    return recipe_of(tree)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: YAML's own reader takes the last value, and drops the first without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for number, key in enumerate(keys):
            if any(key.value == before.value for before in keys[:number]):
                raise yaml.composer.ComposerError(None, None, f"{key.value} stands twice", key.start_mark)
        return node


def read_yaml(path: Path, wanted: str, error: type[ValueError]) -> Any:
    """What a YAML file holds; an `error` that names the file, and what was `wanted`, if there is none."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as reason:
        raise error(f"{path}: {reason.strerror}; wanted {wanted}") from None
    except UnicodeDecodeError:
        raise error(f"{path}: not text in UTF-8; wanted {wanted}") from None
    except yaml.YAMLError as reason:
        raise error(f"{path}: not YAML: {_of_yaml(reason)}") from None


def _of_yaml(reason: yaml.YAMLError) -> str:
    """What YAML's reader found wrong, and where, in one line."""
    if not isinstance(reason, yaml.MarkedYAMLError) or reason.problem_mark is None:
        return " ".join(str(reason).split())
    return f"{reason.problem}, line {reason.problem_mark.line + 1}, column {reason.problem_mark.column + 1}"


def recipe_of(tree: dict[str, Any]) -> Recipe:
    """The recipe of keys and values as YAML gives them.

    Raises:
        RecipeError: as `load_recipe`.
    """
    try:
        # JSON mode: lists become tuples and strings paths, but "1e-1" stays the string that YAML says it is.
        return Recipe.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise RecipeError("\n".join(starmap(_fault, faults(error)))) from None


def describe_recipe(only: str = "") -> str:
    """Every key with its type, default and meaning, for ``--help-recipe``; what can be chosen twice stands once.

    With `only`, a key of the recipe, that key and those inside it. Raises RecipeError for one that it does not have.
    """
    if only and only not in Recipe.model_fields:
        raise RecipeError(f"--help-recipe: got {only!r}, wanted one of {', '.join(Recipe.model_fields)}")
    return "\n".join(_describe(Recipe, "", {}, only)).strip("\n")


def _describe(section: type[Section], prefix: str, places: dict[Choices[Any], str], only: str = "") -> Iterator[str]:
    """A line or two for each key, the keys of sections inside it, and for a choice the keys of each of its names.

    `places` has where a table of choices was described, and grows. With `only`, this key of the section alone.
    """
    for name, field in section.model_fields.items():
        if (only and name != only) or (name == "name" and issubclass(section, NamedSection)):
            continue  # a name is described with the choice
        key = prefix + name
        choices = choices_in(field)
        inner = section_in(field.annotation)
        if choices:
            yield _describe_field(key, field)
            each = key if isinstance(field.annotation, type) else f"{key}[]"
            if choices in places:
                yield f"      Its names and their keys are those of {places[choices]}."
                continue
            places[choices] = each
            for chosen, names in choices.by_section().items():
                yield f"\n{each}.name: {', '.join(names)}: {_text(inspect.getdoc(chosen), '  ')}"
                yield from _describe(chosen, f"{each}.", places)
        elif inner is None:
            yield _describe_field(key, field, kind_of(field.annotation))
        else:
            alone = isinstance(field.annotation, type)
            yield f"\n{key}: {_text(inspect.getdoc(inner), '  ')}" if alone else _describe_field(key, field)
            yield from _describe(inner, f"{key}." if alone else f"{key}[].", places)


def _describe_field(key: str, field: Any, kind: str = "") -> str:
    default = field.get_default(call_default_factory=True)
    said = "required" if field.is_required() else f"default {json.dumps(default, default=_plain)}"
    return f"  {key} ({kind and kind + '; '}{said})\n      {_text(field.description, '      ')}"


def _text(text: str | None, margin: str) -> str:
    """A text whose lines after the first have a margin."""
    return textwrap.indent(text or "", margin).strip()


def kind_of(annotation: Any) -> str:
    """What values a key takes, in YAML's words: "int", "float or null", "list of int", "sgd or adamw"."""
    inside = get_args(annotation)
    if isinstance(annotation, type) and not inside:
        return {NoneType: "null", Path: "path", str: "text", bool: "true or false"}.get(annotation, annotation.__name__)
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(map(str, inside))
    if origin is Annotated:
        return kind_of(inside[0])
    if origin is tuple and inside[-1] is Ellipsis:
        return f"list of {kind_of(inside[0])}"
    if origin is tuple:
        return f"[{', '.join(map(kind_of, inside))}]"
    return " or ".join(map(kind_of, inside))  # a union


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Section) else str(value)


def _apply(tree: dict[str, Any], change: str) -> None:
    key, separator, value = change.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set: got {change!r}, wanted key=value, for example --set optimizer.steps=100")
    *sections, last = key.split(".")
    schema: type[Section] | None = Recipe
    for name in sections:
        field = schema.model_fields.get(name) if schema else None
        below = tree.setdefault(name, {})
        if isinstance(below, str) and field and choices_in(field):
            below = tree[name] = {"name": below}  # a choice by its name alone gets a key
        if not isinstance(below, dict):
            raise RecipeError(f"--set: got {key!r}, but {name!r} is a value, not a section")
        tree, schema = below, section_in(field.annotation) if field else None
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as reason:
        raise RecipeError(f"--set: got {change!r}, wanted a value in YAML: {_of_yaml(reason)}") from None


def _fault(error: Any, section: type[Section] | None = None) -> str:
    """One line for the user from one of pydantic's errors; `section` is the choice that it lies in, if any."""
    key = ".".join(map(str, error["loc"]))
    got = error["input"]
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{suggestion(error['loc'], section)}"
    if error["type"] == "missing":
        return f"{key}: missing; wanted a value in the recipe or --set {key}=…"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{key}.{message}" if key else message
    hint = ""
    if isinstance(got, str) and error["type"].startswith(("float", "int")) and _is_number(got):
        hint = " (YAML reads 1e-1 as text: write 0.1 or 1.0e-1)"
    wanted = error["msg"].removeprefix("Input should be ")
    return f"{key}: got {json.dumps(got, ensure_ascii=False)}, wanted {wanted}{hint}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
