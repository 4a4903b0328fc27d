"""A source of features: a network, or embeddings made elsewhere. Every stage that judges takes any of them."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cluster.progress import progress_bar
from pipeline.evaluation.embedding.embed import embed
from pipeline.evaluation.scoring.verification import BoolArray
from pipeline.reading.crops import LOOKED_AT, Crop, crop_for
from pipeline.reading.dali import Decoder
from pipeline.reading.images import Images, decode_images, read_image

Rows = NDArray[np.float32]

NAMED = 5  # images of many that a message names


@dataclass(frozen=True)
class ImageList:
    """`N` images in order.

    Attributes:
        names: of the images; embeddings that were made elsewhere are found by them.
        read: positions, a slice of ``range(N)``, to encoded images; an image that cannot be read is empty.
        digest: of the list and its images; equal digests mean equal images.
        whole: the list that this is a part of; None if it is none.
    """

    names: Sequence[str]
    read: Callable[[slice], Images]
    digest: str = ""
    whole: ImageList | None = None

    def __len__(self) -> int:
        return len(self.names)

    def part(self, start: int, stop: int) -> ImageList:
        """The images from `start` to `stop`; it has no digest of its own."""
        return ImageList(
            self.names[start:stop],
            lambda some: self.read(slice(start + some.start, start + some.stop)),
            whole=self.whole or self,
        )

    def first(self, count: int) -> Images:
        """The first `count` images of the whole list, encoded; fewer if there are not so many."""
        whole = self.whole or self
        return whole.read(slice(0, min(count, len(whole))))


def image_files(folder: Path, paths: Sequence[str]) -> ImageList:
    """The image files `paths` below `folder`. Their digest is of paths, sizes and times of change."""
    digest = hashlib.sha256(os.fsencode(folder.resolve()))
    for path in paths:
        try:
            facts = (folder / path).stat()
            digest.update(os.fsencode(f"\n{path}\t{facts.st_size}\t{facts.st_mtime_ns}"))
        except OSError:
            digest.update(os.fsencode(f"\n{path}\tabsent"))
    return ImageList(paths, lambda part: read_files(folder, paths[part]), digest.hexdigest())


@dataclass(frozen=True)
class How:
    """How images become features: `batch_size` at a time, decoded by `threads`, on `device`.

    Of `num_ranks` processes that embed the same lists, and speak by the files that they keep alone, this is `rank`.
    """

    batch_size: int = 64
    threads: int = 2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    num_ranks: int = 1


class Source(ABC):
    """Where features come from.

    Attributes:
        name: of the network, for people.
        digest: equal digests give equal features of the same images.
        step: of the training run; 0 for what is not a run's.
        mirrored: whether features are those of the image and of its mirror, concatenated.
    """

    name: str
    digest: str
    step: int
    mirrored: ClassVar[bool]

    @abstractmethod
    def features(self, images: ImageList, how: How) -> Iterator[Rows]:
        """Features ``[B, W]`` of the images in order, some at a time; a row of NaN if an image gives none.

        Raises ValueError when the network is broken or does not take images of this size.
        """

    @abstractmethod
    def crop(self, images: ImageList) -> Crop | None:
        """How images of this list become the network's; None if pixels are not looked at."""

    def wanted(self, images: ImageList) -> str:
        """What an image of the list must be to give features, for messages."""
        crop = self.crop(images)
        return crop.wanted if crop else f"an embedding for each image in {self.name}"


@dataclass(frozen=True)
class Network(Source):
    """A network: images of `size` (height, width), RGB ``(pixel - 127.5) / 128`` as decoded, to embeddings.

    Its features are those of the image and of its mirror, concatenated. Lists of crops of the other published size are
    fitted (see `crops`).
    """

    mirrored: ClassVar[bool] = True

    name: str
    digest: str
    step: int
    module: nn.Module
    size: tuple[int, int]

    def crop(self, images: ImageList) -> Crop:
        """See `Source.crop`."""
        return crop_for(images.first(LOOKED_AT), self.size)

    def features(self, images: ImageList, how: How) -> Iterator[Rows]:
        """See `Source.features`."""
        crop = self.crop(images)
        decoder = Decoder(how.batch_size, *crop.size, how.device, how.threads)
        under_way: list[tuple[slice, BoolArray]] = []

        def pixels() -> Iterator[torch.Tensor]:
            for part, batch in decode_images(decoder, len(images), images.read):
                under_way.append((part, batch.good))
                yield crop.fit(batch.images)

        for batch in embed(self.module.to(how.device), pixels()):
            part, good = under_way.pop(0)
            rows = batch.numpy()
            self._check(rows, good, images.names[part])
            rows[~good] = np.nan
            yield rows

    def _check(self, rows: Rows, good: BoolArray, names: Sequence[str]) -> None:
        broken = np.flatnonzero(good & ~np.isfinite(rows).all(axis=1))
        if len(broken):
            raise ValueError(
                f"{self.name}: got features that are not finite for {names[broken[0]]}: the weights are broken"
            )


@dataclass(frozen=True)
class Table(Source):
    """Embeddings that were made elsewhere: `place` is the row of each image's name in `rows` ``[N, W]``."""

    mirrored: ClassVar[bool] = False  # how they were made is not known

    name: str
    digest: str
    rows: NDArray[Any]
    place: dict[str, int]
    step: int = 0

    def crop(self, images: ImageList) -> None:  # noqa: ARG002 - of any list
        """See `Source.crop`."""
        return

    def features(self, images: ImageList, how: How) -> Iterator[Rows]:
        """See `Source.features`; an image that the table does not have gives none."""
        for start in range(0, len(images), how.batch_size):
            names = images.names[start : start + how.batch_size]
            places = np.array([self.place.get(name, -1) for name in names])
            rows = np.asarray(self.rows[places], np.float32)
            rows[places < 0] = np.nan
            yield rows


def reasons(source: Source, images: ImageList, positions: Sequence[int]) -> str:
    """Why the images at `positions` gave no features: the first of them by name, and what was wanted."""
    crop = source.crop(images)
    named = [images.names[i] for i in positions[:NAMED]]
    if crop is not None:
        encoded = [images.read(slice(i, i + 1))[0] for i in positions[:NAMED]]
        named = [f"{name} {crop.fault(image)}" for name, image in zip(named, encoded, strict=True)]
    more = f" and {len(positions) - NAMED:,} more" if len(positions) > NAMED else ""
    return f"{', '.join(named)}{more}: wanted {source.wanted(images)}"


def shown(source: Source, images: ImageList, how: How, progress: str | None) -> Iterator[Rows]:
    """The features with a progress bar of this name; None: no bar."""
    with progress_bar(len(images), what=progress, shown=progress is not None) as advance:
        for rows in source.features(images, how):
            advance(len(rows))
            yield rows


def read_files(folder: Path, paths: Iterable[str]) -> Images:
    """The image files `paths` below `folder`, encoded; empty for one that cannot be read."""
    found: Images = []
    for path in paths:
        try:
            found.append(read_image(folder / path))
        except ValueError:
            found.append(np.zeros(0, np.uint8))
    return found
