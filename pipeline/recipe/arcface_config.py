"""A config of InsightFace's ``arcface_torch``: its keys, read out of the Python file without running it.

The keys, their defaults and which values have no counterpart here are in `ArcfaceConfig`. What each key means was read
in that project's ``train_v2.py``, ``losses.py``, ``partial_fc_v2.py`` and ``dataset.py``.
"""

from __future__ import annotations

import ast
import difflib
import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from pipeline.recipe.schema import RecipeError
from pipeline.section import Section

Number = int | float

_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _margins(value: tuple[float, float, float]) -> tuple[float, float, float]:
    """What ``CombinedMarginLoss`` takes; with any other three numbers it raises."""
    m1, m2, m3 = value
    if m3 > 0 or (m1 == 1 and m2 >= 0 and m3 == 0):
        return value
    raise PydanticCustomError("margins", "(1.0, angle, 0.0) or (…, …, cosine) with a cosine above 0")


def _files(value: str) -> str:
    if value == "synthetic":
        raise PydanticCustomError("files", "a folder of faces: there are no synthetic shards")
    return value


class ArcfaceConfig(Section):
    """The keys of a config, with the defaults of ``configs/base.py``."""

    margin_list: Annotated[tuple[float, float, float], AfterValidator(_margins)]
    """m1, m2, m3. With m3 above 0 the loss is CosFace, and m1 and m2 are not read; else ArcFace with the angle m2."""
    network: Literal[
        "r18",
        "r34",
        "r50",
        "r100",
        "r200",
        "mbf",
        "mbf_large",
        "vit_t",
        "vit_t_dp005_mask0",
        "vit_s",
        "vit_s_dp005_mask_0",
        "vit_b",
        "vit_b_dp005_mask_005",
        "vit_l_dp005_mask_005",
    ]
    embedding_size: int = Field(512, ge=1)
    sample_rate: float = Field(1.0, gt=0, le=1)
    """Share of a rank's classes that take part in a step; there, those of the batch count as part of it."""
    interclass_filtering_threshold: float = Field(0.0, ge=0, lt=1)
    """A non-target class with a larger cosine is left alone; 0: none is."""
    fp16: bool = False
    batch_size: int = Field(ge=1)
    """Images of one GPU in one call."""
    gradient_acc: int = Field(1, ge=1)
    """Calls whose gradients are added, each that of the mean over its own images."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(gt=0)
    momentum: float = 0.9
    """Not read by ``train_v2.py``."""
    weight_decay: float = Field(5e-4, ge=0)
    seed: int = Field(2048, ge=0)
    rec: Annotated[str, AfterValidator(_files)]
    num_classes: int | None = None
    num_image: int = Field(ge=1)
    num_epoch: int = Field(ge=1)
    warmup_epoch: int = 0
    """Below 0 is as 0."""
    val_targets: tuple[str, ...] = ()
    verbose: int = Field(2000, ge=1)
    """Calls between verifications."""
    frequent: int = Field(10, ge=1)
    """Calls between lines of the log."""
    dali: bool = False
    dali_aug: bool = False
    """Read with `dali` only."""
    using_wandb: bool = False
    wandb_key: str | None = None
    wandb_entity: str | None = None
    wandb_project: str | None = None
    wandb_log_all: bool = True
    wandb_resume: bool | str = False
    suffix_run_name: str | None = None
    notes: str | None = None
    save_artifacts: bool = False
    save_all_states: bool = False
    resume: bool = False
    output: str | None = None
    num_workers: int = 2


@dataclass(frozen=True)
class Assignments:
    """What a file assigns to its config.

    Attributes:
        keys: the value of each key.
        faults: a line for each statement that is not understood.
        unread: the keys that these lines are about.
    """

    keys: dict[str, Any]
    faults: tuple[str, ...] = ()
    unread: frozenset[str] = frozenset()

    def checked(self) -> ArcfaceConfig:
        """The config of these keys.

        Raises:
            RecipeError: for keys that are unknown, missing, of another type or without a counterpart here, and for
                statements that were not understood: one line each.
        """
        config, faults = None, list(self.faults)
        try:
            # JSON's mode, as for a recipe: a list passes for a tuple, but "128" is no number.
            config = ArcfaceConfig.model_validate_json(json.dumps(self.keys))
        except ValidationError as error:
            faults += [_line(fault) for fault in error.errors() if fault["loc"][0] not in self.unread]
        if self.keys.get("sample_rate", 1) != 1 and self.keys.get("gradient_acc", 1) != 1:
            faults.append(
                f"gradient_acc: got {self.keys['gradient_acc']} with sample_rate {self.keys['sample_rate']}, wanted 1: "
                "which classes take part changes from call to call"
            )
        if faults or config is None:
            raise RecipeError("\n".join(faults))
        return config


def read_config(path: Path) -> Assignments:
    """The keys of a config, over those of ``base.py`` beside it.

    Understood is ``config.key = value`` with a plain value, or with +, -, *, /, // and % over numbers and earlier keys.

    Raises:
        RecipeError: the file is missing or is not Python.
    """
    base = path.with_name("base.py")
    below = _assignments(base) if base.is_file() and base != path else Assignments({})
    above = _assignments(path)
    return Assignments(below.keys | above.keys, below.faults + above.faults, below.unread | above.unread)


def _assignments(path: Path) -> Assignments:
    try:
        tree = ast.parse(path.read_text())
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; wanted a config of arcface_torch") from None
    except SyntaxError as error:
        raise RecipeError(f"{path}: line {error.lineno}: not Python") from None
    except (ValueError, RecursionError):  # not text, or nested without end
        raise RecipeError(f"{path}: not Python") from None
    keys: dict[str, Any] = {}
    faults: list[str] = []
    unread: set[str] = set()
    for node in tree.body:
        if _is_frame(node):
            continue
        where = f"{path}: line {node.lineno}"
        assigned = _assigned(node)
        if assigned is None:
            faults.append(f"{where}: got {_source(node)}, wanted config.key = value")
            continue
        key, value = assigned
        try:
            keys[key] = _value_of(value, keys)
        except (ValueError, ArithmeticError):
            faults.append(f"{where}: {key}: got {_source(value)}, wanted a value or arithmetic")
            unread.add(key)
    return Assignments(keys, tuple(faults), frozenset(unread))


def _is_frame(node: ast.stmt) -> bool:
    """A docstring, the import of easydict, or ``config = edict()``."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "easydict"
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Assign) and ast.unparse(node) in ("config = edict()", "config = EasyDict()")


def _assigned(node: ast.stmt) -> tuple[str, ast.expr] | None:
    """The key that a statement assigns to, and what; None for another statement."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and (key := _key_read(node.targets[0])):
        return key, node.value
    return None


def _key_read(node: ast.expr) -> str | None:
    """``key`` of ``config.key``."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config":
        return node.attr
    return None


def _value_of(node: ast.expr, keys: dict[str, Any]) -> Any:
    """The value of an expression. Raises ValueError for one that is not understood, ArithmeticError for x / 0."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str, type(None))):
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        return [_value_of(element, keys) for element in node.elts]
    if (key := _key_read(node)) is not None and key in keys:
        return keys[key]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number_of(node.operand, keys)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_number_of(node.left, keys), _number_of(node.right, keys))
    raise ValueError(ast.unparse(node))


def _number_of(node: ast.expr, keys: dict[str, Any]) -> Number:
    value = _value_of(node, keys)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"got {value!r}, wanted a number")  # noqa: TRY004 - as for all that is not understood
    return value


def _source(node: ast.AST) -> str:
    """The source of a statement or an expression, its first line."""
    return ast.unparse(node).splitlines()[0]


def _line(fault: ErrorDetails) -> str:
    """One of pydantic's errors in a line: key, value got, value wanted."""
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"{key}: not set, wanted by the schedule, the network or the data"
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, ArcfaceConfig.model_fields, n=1)
        return f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else ", which train_v2.py does not read")
    return f"{key}: got {json.dumps(fault['input'])}, wanted {fault['msg'].removeprefix('Input should be ')}"
