"""A study file: arms that differ in a few keys of one recipe, each trained with several seeds, on the same pairs.

An arm that several tables show is trained once: a table's column only names it. Arm and seed alone decide the folder of
a run, so a study file may grow after a part of it was run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from pipeline.recipe.file import load_recipe, read_yaml
from pipeline.recipe.migrate import migrate
from pipeline.recipe.schema import Recipe
from pipeline.run.changes import flat

# Arms and sets name folders.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")]

FILES = ("onnx", "weights", "embeddings")  # of networks that are not trained here

# Keys of a recipe, or how they begin, that a finished run's numbers do not depend on.
WITHOUT_EFFECT = (
    "log.",
    "checkpoint.",
    "faults.",
    "timeout_seconds",
    "data.shards",
    "data.accept_shards",
    "data.decode_threads",
    "data.prefetch",
)


class StudyError(ValueError):
    """A study that cannot be run; the message is one line for the user."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EvaluationSet(_Section):
    """Pairs that every run is evaluated on, both paths below the data folder."""

    images: Path
    pairs: Path
    optional: bool = False
    """Whether the study is run without this set where its pairs file is not there."""


class Arm(_Section):
    """One side of a comparison: changes of the base recipe, as `--set` writes them."""

    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    """Of this arm alone; null: the study's."""
    shards: Path | None = None
    """Training shards of this arm alone, below the data folder; null: the study's."""


class GivenNetwork(_Section):
    """A network that is not trained here, judged once as it is. Its file is below the data folder."""

    onnx: Path | None = None
    weights: Path | None = None
    embeddings: Path | None = None
    network: str | None = None
    """The backbone of `weights`."""
    size: Annotated[str, StringConstraints(pattern=r"^[1-9]\d*x[1-9]\d*$")] | None = None
    """Of its input, such as 112x112."""
    channels: Literal["RGB", "BGR"] | None = None
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _one_file(self) -> GivenNetwork:
        given = [name for name in FILES if getattr(self, name) is not None]
        if len(given) != 1 or (self.network is None) != (self.weights is None):
            raise ValueError(
                f"networks: got {given or 'no file'}, wanted one of {', '.join(FILES)}; network with weights"
            )
        if self.embeddings is not None and self.model_fields_set & {"size", "channels", "mean", "scale"}:
            raise ValueError("networks: got embeddings with an input, which is for images, wanted them alone")
        return self

    @property
    def file(self) -> Path:
        """The one that it is in."""
        return next(file for file in (self.onnx, self.weights, self.embeddings) if file is not None)

    def options(self, data: Path) -> list[str]:
        """The network as ``stages/evaluate.py`` takes it."""
        kind = next(name for name in FILES if getattr(self, name) is not None)
        options = [f"--{kind}", str(data / self.file)]
        for name in ("network", "size", "channels"):
            if getattr(self, name) is not None:
                options += [f"--{name}", getattr(self, name)]
        for name in ("mean", "scale"):
            if getattr(self, name) is not None:
                options += [f"--{name}", *map(str, getattr(self, name))]
        return options


class Table(_Section):
    """One comparison in the layout of a paper: a column an arm, a row an evaluation set."""

    title: str
    columns: dict[str, str]
    """Heading to arm or network; the first is what the others are compared with."""
    source: str = ""
    """The publication of these numbers, and the data that they were measured on."""
    published: dict[str, tuple[float | None, ...]] = {}
    """Set to accuracies in per cent, in the order of the columns; null if the source has none."""


class Study(_Section):
    """A study file, checked."""

    title: str
    recipe: Path
    """The base recipe, relative to the study file."""
    shards: Path
    """The training shards, below the data folder."""
    sets: dict[Name, EvaluationSet] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    set: tuple[str, ...] = ()
    """Changes of the base recipe in every arm."""
    arms: dict[Name, Arm] = Field(min_length=1)
    networks: dict[Name, GivenNetwork] = {}
    """Networks from elsewhere to compare with."""
    tables: tuple[Table, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        of_arms = {f"arms.{name}.seeds": arm.seeds for name, arm in self.arms.items()}
        for place, seeds in [("seeds", self.seeds), *of_arms.items()]:
            if seeds is not None and (len(set(seeds)) != len(seeds) or not seeds):
                raise ValueError(f"{place}: got {list(seeds)}, wanted different seeds, at least one")
        if twice := self.arms.keys() & self.networks.keys():
            raise ValueError(f"networks: got {min(twice)!r}, which is an arm, wanted another name")
        for table in self.tables:
            for heading, arm in table.columns.items():
                if arm not in self.arms and arm not in self.networks:
                    raise ValueError(
                        f"tables: column {heading!r} of {table.title!r}: got arm {arm!r}, wanted one of "
                        f"{', '.join([*self.arms, *self.networks])}"
                    )
            for name, numbers in table.published.items():
                if name not in self.sets or len(numbers) != len(table.columns):
                    raise ValueError(
                        f"tables: published of {table.title!r}: got {len(numbers)} numbers for {name!r}, wanted "
                        f"{len(table.columns)} for one of {', '.join(self.sets)}"
                    )
        return self

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """The seeds that an arm is trained with; 0 alone for a network, which is not."""
        if arm in self.networks:
            return (0,)
        own = self.arms[arm].seeds
        return self.seeds if own is None else own

    def shards_of(self, arm: str) -> Path:
        """The shards that an arm is trained on, below the data folder."""
        return self.arms[arm].shards or self.shards

    def with_sets_in(self, data: Path) -> tuple[Study, list[str]]:
        """The study without the optional sets whose pairs are not in the data folder, and the names of those.

        Raises:
            StudyError: none is left.
        """
        absent = [name for name, places in self.sets.items() if places.optional and not (data / places.pairs).exists()]
        if len(absent) == len(self.sets):
            raise StudyError(f"sets: got none of {', '.join(absent)} in {data}, wanted the pairs of one at least")
        kept = {name: places for name, places in self.sets.items() if name not in absent}
        return self.model_copy(update={"sets": kept}), absent


@dataclass(frozen=True)
class Run:
    """One arm with one seed: a run folder.

    Attributes:
        recipe: the one that is trained.
        changes: of the base recipe, as `--set` writes them.
    """

    arm: str
    seed: int
    changes: tuple[str, ...]
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.arm}-seed{self.seed}"


def load_study(file: Path) -> Study:
    """Read a study file.

    Raises:
        StudyError: naming the key, the value got and the value wanted.
    """
    tree = read_yaml(file, "a study file, such as stages/studies/casia.yaml", StudyError)
    if not isinstance(tree, dict):
        raise StudyError(f"{file}: got {type(tree).__name__}, wanted keys and values")
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        raise StudyError(f"{file}: " + "; ".join(map(_fault, error.errors()))) from None


def runs_of(study: Study, file: Path, data: Path, changes: Sequence[str] = ()) -> list[Run]:
    """Every run of a study, seed by seed: when half is done, every arm has had its turn.

    Args:
        file: the study's, which its recipe is relative to.
        data: folder that the paths of data are relative to.
        changes: of every run's recipe, last.

    Raises:
        RecipeError: for a recipe that cannot be run.
        StudyError: for two arms that would train the same network.
    """
    seeds = dict.fromkeys(chain(study.seeds, *map(study.seeds_of, study.arms)))
    runs = []
    for seed in seeds:
        for name, arm in study.arms.items():
            if seed in study.seeds_of(name):
                shards = f"data.shards={json.dumps(str(data / study.shards_of(name)))}"
                mine = (shards, *study.set, *arm.set, f"seed={seed}")
                every = (*mine, *changes)
                runs.append(Run(name, seed, every, load_recipe(file.parent / study.recipe, list(every))))
    _require_different(runs)
    return runs


def differences(saved: Path, recipe: Recipe) -> list[str]:
    """Keys by which a finished run's ``recipe.yaml`` differs from `recipe`, as ``key: saved → wanted``.

    Keys that change no number, such as those of logging and the shards' folder, are not compared.
    """
    tree, _ = migrate(yaml.safe_load(saved.read_text()))
    had = flat(tree)
    wanted = flat(recipe.model_dump(mode="json"))
    compared = [key for key in wanted if key in had and not key.startswith(WITHOUT_EFFECT)]
    return [f"{key}: {had[key]} → {wanted[key]}" for key in compared if had[key] != wanted[key]]


def _require_different(runs: Sequence[Run]) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        twin = seen.setdefault(run.recipe.to_yaml(), run)
        if twin is not run:
            raise StudyError(
                f"arms: {run.arm!r} and {twin.arm!r} are the same recipe, wanted one arm, which two columns may name"
            )


def _fault(error: Any) -> str:
    """One of pydantic's errors as key, value got, value wanted."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if error["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: got {error['input']!r}, wanted: {error['msg'].removeprefix('Input should be ')}"
