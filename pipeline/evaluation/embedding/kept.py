"""Features that are kept on disk, part by part: used again by another question, or by a run after one that broke."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.progress import Advance, progress_bar
from cluster.ranks.topology import split_range
from pipeline.evaluation.embedding.source import How, ImageList, Network, Rows, Source, Table, reasons
from pipeline.evaluation.scoring.verification import BoolArray, FloatArray, IntArray
from pipeline.files import write_file

PART = 8192  # images


@dataclass(frozen=True)
class Kept:
    """Features `[N, W]` in parts of `PART` rows, mapped into memory; a row of NaN for an image that gave none."""

    parts: list[Rows]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @cached_property
    def good(self) -> BoolArray:
        """Which images gave features, `[N]`."""
        return np.concatenate([np.isfinite(part[:, 0]) for part in self.parts])

    @cached_property
    def zeros(self) -> BoolArray:
        """Which images have features of zeros only, `[N]`."""
        return np.concatenate([~part.any(axis=1) for part in self.parts])

    def rows(self, positions: IntArray) -> Rows:
        """The rows at `positions`, in that order."""
        found = np.empty((len(positions), self.parts[0].shape[1]), np.float32)
        of_part = positions // PART
        for part in np.unique(of_part):
            mine = of_part == part
            found[mine] = self.parts[part][positions[mine] % PART]
        return found

    def blocks(self) -> Iterator[Rows]:
        """The rows of images that gave features, a part at a time."""
        for part in self.parts:
            rows = np.asarray(part)
            yield rows[np.isfinite(rows[:, 0])]


def keep(folder: Path, source: Source, images: ImageList, how: How, progress: str | None = None) -> Kept:
    """The features of `images`, kept in a folder below `folder` that source and images decide.

    Parts that are there are not computed again. Of several ranks this one makes its own share first, then what others
    have not made yet: from the end, where they are last, so that hardly a part is made twice, and one that was lost is
    not waited for. `progress` names the bar; None: no bar. Raises ValueError if no image
    gives features, NotWrittenError for a full disk, and as `Source.features` does.
    """
    if isinstance(source, Table):  # in memory already
        return _checked(Kept(list(source.features(images, replace(how, batch_size=PART)))), images, source)
    home = folder / _key(source, images)
    mine = _share(images, how)
    others = [number for number in range(_parts(images)) if number not in mine]
    _make(home, source, images, how, [*mine, *reversed(others)], progress)
    parts = [_load(_file(home, number), len(_part(images, number))) for number in range(_parts(images))]
    whole = [part for part in parts if part is not None]
    assert len(whole) == len(parts), "they were just written"  # one left out would shift the features of all others
    return _checked(Kept(whole), images, source)


def keep_share(folder: Path, source: Source, images: ImageList, how: How) -> None:
    """Make this rank's share of what `keep` returns to rank 0; raises what `keep` raises but for lists without any."""
    if not isinstance(source, Table):
        _make(folder / _key(source, images), source, images, how, _share(images, how), None)


def means_of_frames(kept: Kept, counts: IntArray) -> FloatArray:
    """The mean `[N, W]` in float64 of each run of ``counts[i]`` consecutive images, those without features excepted.

    A row of NaN for a run without any. Memory is that of one block of runs beside the result.
    """
    means = np.full((len(counts), kept.parts[0].shape[1]), np.nan)
    stops = np.cumsum(counts)
    first = 0
    while first < len(counts):
        start = int(stops[first] - counts[first])
        last = max(first + 1, int(np.searchsorted(stops, start + PART, side="right")))
        positions = np.arange(start, stops[last - 1])
        good = kept.good[positions]
        run = np.repeat(np.arange(first, last), counts[first:last])[good]
        if len(run):
            found, begins, sizes = np.unique(run, return_index=True, return_counts=True)
            rows = kept.rows(positions[good]).astype(np.float64)
            means[found] = np.add.reduceat(rows, begins, axis=0) / sizes[:, None]
        first = last
    return means


def remarks(kept: Kept, images: ImageList, source: Source) -> list[str]:
    """What is to be said of the images, a line each: that they were fitted, and those without features or direction."""
    crop = source.crop(images)
    found = [crop.words] if crop and crop.words else []
    bad = np.flatnonzero(~kept.good)
    if len(bad):
        found.append(f"{len(bad):,} of {len(images):,} images left out: {reasons(source, images, bad.tolist())}")
    if kept.zeros.any():
        name = images.names[int(np.argmax(kept.zeros))]
        found.append(
            f"{kept.zeros.sum():,} of {len(images):,} images are like no other, with features of zeros: {name}, …"
        )
    return found


def _make(
    home: Path, source: Source, images: ImageList, how: How, numbers: Iterable[int], progress: str | None
) -> None:
    """Make the parts of these numbers that are not there, in this order."""
    home.mkdir(parents=True, exist_ok=True)
    with progress_bar(len(images), what=progress, shown=progress is not None) as advance:
        for number in numbers:
            some, file = _part(images, number), _file(home, number)
            if _load(file, len(some)) is None:
                _write(file, source, some, how, advance)
            else:
                advance(len(some))


def _parts(images: ImageList) -> int:
    return -(-len(images) // PART)


def _share(images: ImageList, how: How) -> range:
    return split_range(_parts(images), how.num_ranks, how.rank)


def _part(images: ImageList, number: int) -> ImageList:
    return images.part(number * PART, min((number + 1) * PART, len(images)))


def _file(home: Path, number: int) -> Path:
    return home / f"part-{number:05d}.npy"


def _checked(kept: Kept, images: ImageList, source: Source) -> Kept:
    if not kept.good.any():
        raise ValueError(f"got no features of {len(images):,} images: {reasons(source, images, range(len(images)))}")
    return kept


def _key(source: Source, images: ImageList) -> str:
    crop = source.size if isinstance(source, Network) else ""
    return hashlib.sha256(f"{source.digest} {images.digest} {crop}".encode()).hexdigest()[:32]


def _write(file: Path, source: Source, images: ImageList, how: How, advance: Advance) -> None:
    found: list[NDArray[np.float32]] = []
    for rows in source.features(images, how):
        found.append(rows)
        advance(len(rows))
    stream = io.BytesIO()
    np.save(stream, np.concatenate(found))
    write_file(file, stream.getvalue())


def _load(file: Path, count: int) -> Rows | None:
    """The part in `file`; None unless it is whole."""
    try:
        part = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return part if part.ndim == 2 and len(part) == count and part.dtype == np.float32 else None
