"""The page about label noise: samples far from their identity beside it, and identities that may be one person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.reports.hardest import uri_of
from pipeline.evaluation.reports.pages import render
from pipeline.files import write_file
from pipeline.reading.tars import ShardSet

PICTURES = 4  # of each identity


@dataclass(frozen=True)
class Row:
    """What is doubtful: a number, whom it is about, and pictures of both sides as data URIs."""

    number: str
    names: tuple[str, str]
    left: list[str]
    right: list[str]


class Pictures:
    """Pictures of the identities of a set.

    Args:
        shards: the set.
        names: of its identities.
        suspects: samples that are shown of nobody.
    """

    def __init__(self, shards: ShardSet, names: Sequence[str], suspects: Sequence[int]) -> None:
        self._shards, self._names = shards, names
        self._labels = shards.labels(np.arange(shards.manifest.samples))
        self._trusted = np.ones(len(self._labels), dtype=bool)
        self._trusted[list(suspects)] = False

    def of_sample(self, sample: int, degrees: float) -> Row:
        """A suspect beside others of its identity."""
        label = int(self._labels[sample])
        number = f"{degrees:.0f}°"
        return Row(number, (f"sample {sample}", self._names[label]), self._uris(np.array([sample])), self._of(label))

    def of_pair(self, one: int, other: int, cosine: float) -> Row:
        """Two identities beside each other."""
        names = self._names[one], self._names[other]
        return Row(f"{cosine:.2f}", names, self._of(one), self._of(other))

    def _of(self, label: int) -> list[str]:
        return self._uris(np.flatnonzero((self._labels == label) & self._trusted)[:PICTURES])

    def _uris(self, ids: NDArray[np.int64]) -> list[str]:
        return [uri_of(image.tobytes()) for image in self._shards.read(ids)]


def write_page(out: Path, suspects: Sequence[Row], pairs: Sequence[Row], facts: dict[str, str]) -> None:
    """Write the page to `out`.

    Raises:
        NotWrittenError: the disk is full or read-only.
    """
    write_file(out, render("label_noise.html", suspects=suspects, pairs=pairs, facts=facts).encode())
