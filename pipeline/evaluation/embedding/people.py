"""A set of people, in shards or in identity folders: their names, their images, and the centre of their features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline.evaluation.embedding.source import How, ImageList, Source, read_files, shown
from pipeline.evaluation.protocols.pairs import list_images
from pipeline.evaluation.protocols.pairs_file import identity_of
from pipeline.evaluation.scoring.verification import IntArray
from pipeline.reading.images import Images
from pipeline.reading.tars import ShardSet
from pipeline.shards.format.names import read_identities


@dataclass(frozen=True)
class People:
    """`C` people with `N` images.

    Attributes:
        names: of the people.
        label: `[N]` the person on each image, a position in `names`.
        read: positions of images to their encoded bytes.
        digest: of names and images; equal digests mean the same set.
        paths: of the images below their folder; empty for shards, whose images have none.
    """

    names: list[str]
    label: IntArray
    read: Callable[[Sequence[int]], Images]
    digest: str
    paths: Sequence[str] = ()

    @property
    def images(self) -> ImageList:
        """All images; those of shards are named by their number."""
        names = self.paths or [f"{i:08d}" for i in range(len(self.label))]
        return ImageList(names, lambda part: self.read(range(part.start, part.stop)), self.digest)

    def of(self, person: int, count: int) -> Images:
        """The first `count` images of a person, encoded; fewer if there are not so many."""
        return self.read(np.flatnonzero(self.label == person)[:count].tolist())


def people_in(place: Path) -> People:
    """The people of a set of shards, or of a folder of identity folders.

    Raises ValueError (`ShardError` among them) when there are none, or the shards are not sound.
    """
    return _in_shards(place) if (place / "manifest.json").is_file() else _in_folders(place)


def _in_shards(folder: Path) -> People:
    shards = ShardSet(folder)
    labels = shards.labels(np.arange(shards.manifest.samples))
    return People(read_identities(folder, shards.manifest), labels, shards.read, shards.manifest.digest)


def _in_folders(folder: Path) -> People:
    paths = list_images(folder)
    names, labels = np.unique(list(map(identity_of, paths)), return_inverse=True)
    digest = hashlib.sha256("\n".join(f"{path} {(folder / path).stat().st_size}" for path in paths).encode())
    return People(
        names.tolist(),
        labels.astype(np.int64),
        lambda positions: read_files(folder, [paths[i] for i in positions]),
        digest.hexdigest(),
        paths,
    )


def centres(source: Source, people: People, how: How, progress: str | None = None) -> tuple[NDArray[np.float32], int]:
    """The mean direction `[C, W]` of each person's features, of length 1, and how many images gave no features.

    A person without an image that gives features has a row of zeros. `progress` names the bar; None: no bar.
    """
    sums_CD: torch.Tensor | None = None
    done = without = 0
    for rows_BD in shown(source, people.images, how, progress):
        if sums_CD is None:
            sums_CD = torch.zeros(len(people.names), rows_BD.shape[1])
        label_B = people.label[done : done + len(rows_BD)]
        good_B = np.isfinite(rows_BD[:, 0])
        unit_BD = F.normalize(torch.from_numpy(rows_BD[good_B]), dim=1)
        sums_CD.index_add_(0, torch.from_numpy(label_B[good_B]), unit_BD)
        without += int(np.sum(~good_B))
        done += len(rows_BD)
    assert sums_CD is not None, "people without images are not made"
    return F.normalize(sums_CD, dim=1).numpy(), without
