"""What a sink is: keys of the recipe, and a writer of scalars and files to a tracker.

A tracker is one file here: a section that `SINKS` knows by name, whose `open` imports its package.

    log:
      sinks: [tensorboard, {name: wandb, project: faces}]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.section import Choices, NamedSection


@dataclass(frozen=True)
class Tracked:
    """The run that a writer is opened for.

    Attributes:
        name: of the run.
        step: steps done; what a tracker holds of later ones is of a past that the run has gone back from.
        keys: of its recipe, as ``--set`` writes them.
        folder: where the tracker may keep what it needs; it is the same when the run resumes.
    """

    name: str
    step: int
    keys: Mapping[str, Any]
    folder: Path


class Writer(Protocol):
    """A tracker's run, open. Any method may raise anything, and take as long as a network does."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers after `step` steps, by name: Prometheus' own, with a label's value after a slash."""

    def file(self, path: Path) -> None:
        """Keep a file beside the numbers, under its name."""

    def close(self, finished: bool) -> None:
        """Send what is left; not `finished` if an error ended the run."""


class Sink(NamedSection, ABC):
    """A tracker, and where in it the run goes."""

    @abstractmethod
    def open(self, run: Tracked) -> Writer:
        """A writer that continues what it finds of the run.

        Raises anything, ModuleNotFoundError if the tracker's package is not installed.
        """


SINKS: Choices[Sink] = Choices("sink")
