"""Pairs: which images a verification protocol compares, read from a pairs file and numbered.

Paths are relative to the image folder. A path may also name a folder of images, such as a video's frames: it counts as
one image whose features are the mean of theirs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.evaluation.protocols.pairs_file import Row, read_rows
from pipeline.evaluation.scoring.verification import BoolArray, FloatArray, IntArray, ScoredPairs

SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class Pairs:
    """`P` comparisons among `N` distinct images.

    Attributes:
        paths: the `N` images, in order of first mention, relative to the image folder.
        identity: `[N]` identity of each image, a position in `people`.
        a, b: `[P]` positions in `paths`.
        same: `[P]` whether the two images show one identity.
        fold: `[P]` positions in `folds`.
        folds: the folds' names, in order of first mention.
        people: the identities' names, in order of first mention.
    """

    paths: tuple[str, ...]
    identity: IntArray
    a: IntArray
    b: IntArray
    same: BoolArray
    fold: IntArray
    folds: tuple[str, ...]
    people: tuple[str, ...]

    @property
    def impostors(self) -> int:
        """How many pairs show two identities."""
        return int(np.sum(~self.same))

    def without(self, people: Collection[str], source: str) -> Pairs:
        """The pairs that show none of `people`, given by their names; raises ValueError as `among` does."""
        return self.among(np.array([self.people[i] not in people for i in self.identity], bool), source)

    def among(self, wanted: BoolArray, source: str) -> Pairs:
        """The pairs of two images that are `wanted` `[N]`.

        Raises ValueError, naming `source`, if a fold is left without pairs, or without a threshold (see `assemble`).
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

    def oddities(self) -> list[str]:
        """What is odd about pairs that are judged as they are listed: a line each, with its count."""
        one_person = self.identity[self.a] == self.identity[self.b]
        pairs_in = np.bincount(self.fold, minlength=len(self.folds))
        same_in = np.bincount(self.fold[self.same], minlength=len(self.folds))
        counts = {
            "pairs compare an image with itself": np.sum(self.a == self.b),
            "different pairs show one person, by their names or by other pairs": np.sum(one_person & ~self.same),
            "same pairs show two people, by their names": np.sum(~one_person & self.same),
            "folds hold pairs of one kind": np.sum((same_in == 0) | (same_in == pairs_in)),
        }
        return [f"{count:,} {words}: judged as listed" for words, count in counts.items() if count]

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

    Raises ValueError as `read_rows` and `assemble` do, and for an image that `images` lacks.
    """
    pairs = assemble(list(read_rows(file)), str(file))
    require_images(pairs.paths, images, str(file))
    return pairs


def assemble(rows: list[Row], source: str) -> Pairs:
    """Number images, people and folds in order of first mention; `source` names the rows in an error.

    Raises ValueError for an image of two people, for fewer than two folds, and for a fold whose threshold the others
    cannot give, since they hold pairs of one kind only.
    """
    images: dict[str, int] = {}
    person_of: dict[str, str] = {}
    folds: dict[str, int] = {}
    fold, a, b = np.empty((3, len(rows)), np.int64)
    for i, row in enumerate(rows):
        fold[i] = folds.setdefault(row.fold, len(folds))
        a[i] = images.setdefault(row.path_a, len(images))
        b[i] = images.setdefault(row.path_b, len(images))
        for path, person in zip((row.path_a, row.path_b), row.people, strict=True):
            if person_of.setdefault(path, person) != person:
                raise ValueError(f"{source}: got {person_of[path]} and {person} for {path}, wanted one person")
    people = {person: number for number, person in enumerate(dict.fromkeys(person_of.values()))}
    identity = np.array([people[person] for person in person_of.values()], np.int64)
    same = np.array([row.same for row in rows], bool)
    _check_folds(tuple(folds), fold, same, source)
    return Pairs(tuple(images), identity, a, b, same, fold, tuple(folds), tuple(people))


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
    """Every JPEG and PNG below `folder`, as sorted relative paths.

    Raises ValueError if there is none, or for a name that no list or result can hold: it is not UTF-8.
    """
    images = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    found = sorted(path.relative_to(folder).as_posix() for path in images)
    if not folder.is_dir():
        raise ValueError(f"{folder}: got no such folder, wanted one of images")
    if not found:
        raise ValueError(f"{folder}: got no images, wanted at least one of {', '.join(sorted(SUFFIXES))}")
    odd = [path for path in found if not path.isascii() and path.encode(errors="ignore").decode() != path]
    if odd:
        raise ValueError(f"{folder}: got {odd[0]!a} and {len(odd) - 1} more, wanted names in UTF-8")
    return found


def _check_folds(folds: tuple[str, ...], fold: IntArray, same: BoolArray, source: str) -> None:
    if len(folds) < 2:
        raise ValueError(f"{source}: got {len(folds)} folds, wanted at least 2")
    empty = [name for number, name in enumerate(folds) if not np.any(fold == number)]
    if empty:
        raise ValueError(f"{source}: fold {empty[0]}: got no pairs, wanted some")
    for number, name in enumerate(folds):
        others = same[fold != number]
        if others.all() or not others.any():
            raise ValueError(
                f"{source}: fold {name}: the other folds, which give its threshold, have {others.sum()} same and"
                f" {np.sum(~others)} different pairs, wanted some of each"
            )
