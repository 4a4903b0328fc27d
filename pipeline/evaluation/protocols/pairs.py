"""Pairs files: which images a verification protocol compares.

A tab-separated file with the header ``fold  path_a  path_b  same``: paths are relative to the image folder,
an image's identity is the folder that holds it, and ``same`` is 1 or 0. A path may also name a folder of images, such
as a video's frames: it counts as one image whose features are the mean of theirs.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from pipeline.evaluation.scoring.verification import BoolArray, FloatArray, IntArray, ScoredPairs

COLUMNS = ("fold", "path_a", "path_b", "same")
SUFFIXES = {".jpg", ".jpeg", ".png"}


class Row(NamedTuple):
    """One comparison as a protocol file states it."""

    fold: str
    path_a: str
    path_b: str
    same: bool


@dataclass(frozen=True)
class Pairs:
    """`P` comparisons among `N` distinct images.

    Attributes:
        paths: the `N` images, in order of first mention, relative to the image folder.
        identity: `[N]` identity of each image.
        a, b: `[P]` positions in `paths`.
        same: `[P]` whether the two images show one identity.
        fold: `[P]` positions in `folds`.
        folds: the folds' names, in order of first mention.
    """

    paths: tuple[str, ...]
    identity: IntArray
    a: IntArray
    b: IntArray
    same: BoolArray
    fold: IntArray
    folds: tuple[str, ...]

    @property
    def impostors(self) -> int:
        """How many pairs show two identities."""
        return int(np.sum(~self.same))

    def without(self, people: Collection[str], source: str) -> Pairs:
        """The pairs that show none of `people`, each named as the folder of the images.

        Raises ValueError, naming `source`, when a fold is left without pairs of either kind.
        """
        return self.among(np.array([identity_of(path) not in people for path in self.paths], bool), source)

    def among(self, wanted: BoolArray, source: str) -> Pairs:
        """The pairs of two images that are `wanted` `[N]`.

        Raises ValueError, naming `source`, when a fold is left without pairs of either kind.
        """
        keep = wanted[self.a] & wanted[self.b]
        rest = f"{source}, {np.sum(keep)} of {len(keep)} pairs left"
        _check_folds(self.folds, self.fold[keep], self.same[keep], rest)
        kept = np.unique(np.concatenate([self.a[keep], self.b[keep]]))
        place = np.zeros(len(self.paths), np.int64)
        place[kept] = np.arange(len(kept))
        return replace(
            self,
            paths=tuple(self.paths[i] for i in kept),
            identity=self.identity[kept],
            a=place[self.a[keep]],
            b=place[self.b[keep]],
            same=self.same[keep],
            fold=self.fold[keep],
        )

    def scored(self, scores: FloatArray) -> ScoredPairs:
        """The pairs with their similarities `[P]`, ready for `verification`."""
        return ScoredPairs.of(
            scores,
            self.same,
            self.fold,
            identity_a=self.identity[self.a],
            identity_b=self.identity[self.b],
        )


def read_pairs(file: Path, images: Path) -> Pairs:
    """Read a pairs file and check it whole, image files included, before anything is computed.

    Raises ValueError with the file and line for a missing column or a bad value, for an image that `images`
    lacks, for fewer than two folds and for a fold with pairs of one kind only.
    """
    pairs = assemble(list(_rows(file)), str(file))
    require_images(pairs.paths, images, str(file))
    return pairs


def assemble(rows: list[Row], source: str) -> Pairs:
    """Number images, identities and folds in order of first mention; `source` names the rows in an error."""
    images: dict[str, int] = {}
    identities: dict[str, int] = {}
    folds: dict[str, int] = {}
    fold, a, b = np.empty((3, len(rows)), np.int64)
    for i, row in enumerate(rows):
        fold[i] = folds.setdefault(row.fold, len(folds))
        a[i] = images.setdefault(row.path_a, len(images))
        b[i] = images.setdefault(row.path_b, len(images))
    identity = [identities.setdefault(identity_of(path), len(identities)) for path in images]
    same = np.array([row.same for row in rows], bool)
    _check_folds(tuple(folds), fold, same, source)
    return Pairs(tuple(images), np.array(identity, np.int64), a, b, same, fold, tuple(folds))


def require_images(paths: tuple[str, ...], images: Path, source: str) -> None:
    """Raise ValueError naming the first of `paths` that the folder `images` lacks, and how many more."""
    if not images.is_dir():
        raise ValueError(f"images: got {images}, wanted an existing folder")
    absent = [path for path in paths if not frames_of(images, path)]
    if absent:
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise ValueError(f"{source}: names {absent[0]}{more}, wanted an image or a folder of images in {images}")


def frames_of(images: Path, path: str) -> list[str]:
    """The image files, relative to `images`, that `path` stands for: itself, or those of a folder; empty if absent."""
    place = images / path
    if place.is_dir():
        return sorted(f"{path}/{file.name}" for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
    return [path] if place.is_file() else []


def list_images(folder: Path) -> list[str]:
    """Every JPEG and PNG below `folder`, as sorted relative paths; raises ValueError when there is none."""
    images = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    found = sorted(path.relative_to(folder).as_posix() for path in images)
    if not found:
        raise ValueError(f"{folder}: got no images, wanted at least one of {', '.join(sorted(SUFFIXES))}")
    return found


def _rows(file: Path) -> Iterator[Row]:
    try:
        stream = file.open(newline="", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"pairs: cannot read {file}: {error.strerror}") from None
    with stream:
        reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{file}: got no column {missing[0]!r}, wanted {', '.join(COLUMNS)} (tab-separated)")
        for values in reader:
            yield _row(values, f"{file}, line {reader.line_num}")


def _row(values: dict[str, str | None], where: str) -> Row:
    for name in COLUMNS:
        if not values[name]:
            raise ValueError(f"{where}: got no value for {name}, wanted {len(COLUMNS)} tab-separated values")
    fold, a, b, same = (str(values[name]) for name in COLUMNS)
    if same not in {"0", "1"}:
        raise ValueError(f"{where}: same: got {same!r}, wanted 0 or 1")
    if a == b:
        raise ValueError(f"{where}: got {a} twice, wanted two different images")
    if (identity_of(a) == identity_of(b)) != (same == "1"):
        raise ValueError(
            f"{where}: same: got {same} for {a} and {b}, wanted 1 exactly when one folder holds both images"
        )
    return Row(fold, a, b, same == "1")


def identity_of(path: str) -> str:
    """The identity of an image: the folder that holds it."""
    return PurePosixPath(path).parent.as_posix()


def _check_folds(folds: tuple[str, ...], fold: IntArray, same: BoolArray, source: str) -> None:
    if len(folds) < 2:
        raise ValueError(f"{source}: got {len(folds)} folds, wanted at least 2")
    for number, name in enumerate(folds):
        kinds = same[fold == number]
        if kinds.all() or not kinds.any():
            raise ValueError(
                f"{source}: fold {name}: got {kinds.sum()} same and {np.sum(~kinds)} different pairs,"
                " wanted some of each"
            )
