"""A set of people, in shards or in identity folders: their names, their images, and the centre of their features."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from pipeline.evaluation.embedding.embed import embed
from pipeline.evaluation.protocols.pairs import list_images
from pipeline.evaluation.scoring.verification import BoolArray, IntArray
from pipeline.reading.dali import Decoder
from pipeline.reading.images import Images, decode_images, read_image
from pipeline.reading.tars import ShardSet
from pipeline.shards.views import read_identities


@dataclass(frozen=True)
class People:
    """`C` people with `N` images.

    Attributes:
        names: of the people.
        label: `[N]` the person on each image, a position in `names`.
        read: positions of images to their encoded bytes.
        digest: of names and images; equal digests mean the same set.
    """

    names: list[str]
    label: IntArray
    read: Callable[[Sequence[int]], Images]
    digest: str

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
    names, labels = np.unique([PurePosixPath(path).parent.as_posix() for path in paths], return_inverse=True)
    digest = hashlib.sha256("\n".join(f"{path} {(folder / path).stat().st_size}" for path in paths).encode())
    return People(
        names.tolist(),
        labels.astype(np.int64),
        lambda positions: [read_image(folder / paths[i]) for i in positions],
        digest.hexdigest(),
    )


def centres(
    backbone: nn.Module, people: People, decoder: Decoder, progress: str | None = None
) -> tuple[NDArray[np.float32], int]:
    """The mean direction `[C, 2D]` of each person's features, of length 1, and how many images could not be decoded.

    A person without an image that can be decoded has a row of zeros. `progress` names the bar; None: no bar.
    """
    sums_CD: torch.Tensor | None = None
    undecodable = 0
    with tqdm(total=len(people.label), unit=" images", desc=progress, disable=None if progress else True) as bar:
        for features_BD, label_B, good_B in _features(backbone, people, decoder):
            if sums_CD is None:
                sums_CD = torch.zeros(len(people.names), features_BD.shape[1])
            unit_BD = F.normalize(features_BD[torch.from_numpy(good_B)], dim=1)
            sums_CD.index_add_(0, torch.from_numpy(label_B[good_B]), unit_BD)
            undecodable += int(np.sum(~good_B))
            bar.update(len(label_B))
    assert sums_CD is not None, "people without images are not made"
    return F.normalize(sums_CD, dim=1).numpy(), undecodable


def _features(
    backbone: nn.Module, people: People, decoder: Decoder
) -> Iterator[tuple[torch.Tensor, IntArray, BoolArray]]:
    """Of each batch of images: features `[B, 2D]`, labels `[B]`, and which of them were decoded `[B]`."""

    def read(part: slice) -> Images:
        return people.read(range(part.start, part.stop))

    under_way: deque[tuple[slice, BoolArray]] = deque()

    def pixels() -> Iterator[torch.Tensor]:
        for part, batch in decode_images(decoder, len(people.label), read):
            under_way.append((part, batch.good))
            yield batch.images

    for features in embed(backbone, pixels()):
        part, good = under_way.popleft()
        yield features, people.label[part], good
