"""InsightFace's packing of a face set: `train.rec`, `train.idx` and `property` (MS1MV3, Glint360K, WebFace42M).

An image's record holds its label, and that counts. Records without an image are descriptions: record 0 holds the range
of the identity records' keys, and each identity record the range of keys of one *run of equal labels* in the list that
was packed (InsightFace's face2rec2.py). So an identity record says which images have one label, but not which: people
removed before packing, or listed in two runs, move its place. A record carries no checksum, so a label that differs
from the others of its run is damage. Keys are stored as float32, which is exact below 2**24; larger ones are not used.
"""

import hashlib
import logging
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, starmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.sources import OneByOne, changed_at
from pipeline.shards.sources.labels import number_names, ranked
from pipeline.shards.sources.recordio import (
    FIRST,
    IMAGE_HEADER,
    LENGTH_BITS,
    LENGTH_MASK,
    MAGIC,
    PART_HEADER,
    part_starts,
    read_record,
    split_image_record,
)
from pipeline.shards.sources.splits import EVERYTHING, Choice, choose

logger = logging.getLogger(__name__)

EXACT_KEYS = 1 << 24
CHUNK = 1 << 20  # records whose headers are looked at together
NO_MAJORITY = -9  # instead of a label: no two numbers beside it are two apart


# Why a record is set aside; its number is its place here.
REASONS = (
    "",
    "no record at its offset",
    "truncated: the file ends in it",
    "length: it is not followed by a record",
    "image header: more labels than bytes",
    "label: not a whole number of at least 0",
    "label: not that of the other images of its identity record",
    "listed twice",
)
(SOUND, NO_RECORD, TRUNCATED, WRONG_LENGTH, TOO_MANY_LABELS, NO_IDENTITY, OTHER_IDENTITY, LISTED_TWICE) = range(8)


@dataclass(frozen=True)
class _Headers:
    """Of all records: the first two labels, whether an image follows, and what is wrong (a number of `REASONS`)."""

    labels: NDArray[np.float32]
    has_image: NDArray[np.bool_]
    problem: NDArray[np.uint8]

    def part(self, records: slice) -> "_Headers":
        """Views of some records."""
        return _Headers(self.labels[records], self.has_image[records], self.problem[records])


@dataclass(frozen=True)
class RecordSource(OneByOne):
    """Images of a RecordIO file in the order of their keys; an identity's name is its number in the file."""

    path: Path
    identities: Sequence[str]
    labels: NDArray[np.uint32]
    set_aside: Sequence[SetAside]
    keys: NDArray[np.int64]
    offsets: NDArray[np.int64]
    descriptor: int
    kind: str = "recordio"
    sequential: bool = False

    def digest(self) -> str:
        """SHA-256 of identities, labels, keys and offsets."""
        digest = hashlib.sha256("\n".join(self.identities).encode())
        for column in (self.labels, self.keys, self.offsets):
            digest.update(column.data)
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """`identity/key`."""
        return f"{self.identities[self.labels[sample]]}/{self.keys[sample]}"

    def modified(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """[samples] when the record file was last changed."""
        return np.full(len(samples), changed_at(self.path))

    def read(self, sample: int) -> bytes:
        """The encoded image; a broken record is set aside."""
        try:
            _, image = split_image_record(read_record(self.descriptor, int(self.offsets[sample])))
        except OSError as error:
            raise ShardError(f"{self.path}: {error.strerror}") from error
        return image


def open_records(place: Path, choice: Choice = EVERYTHING) -> RecordSource:
    """Open a record file, or that of a folder; its index and `property` beside it are used if they are there.

    Raises:
        ShardError: no file or several, an index that is no list of keys and offsets, or no usable image.
    """
    path = _record_file(place, choice)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}") from error
    size = os.fstat(descriptor).st_size
    if size < PART_HEADER.size:
        raise ShardError(f"{path}: got {size} bytes, wanted records")
    mapping = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    words = np.frombuffer(mapping, "<u4", size // 4)
    keys, offsets = _positions(path.with_suffix(".idx"), words)
    headers = _read_headers(mapping, words, offsets)
    headers.problem[_listed_before(keys) | _listed_before(offsets)] = LISTED_TWICE
    _check_labels(keys, headers)
    set_aside = [*_missing_images(path.name, keys, headers), *_problems(path.name, keys, headers)]
    good = headers.has_image & (headers.problem == SOUND)
    if not good.any():
        first = ": ".join(set_aside[0][:2]) if set_aside else "none"
        raise ShardError(f"{path}: got no usable image in {len(keys)} records; the first fault: {first}")
    of_images = headers.labels[good, 0]
    del headers  # before the images' keys and offsets are made beside those of all records
    numbers, labels = ranked([of_images[first : first + CHUNK] for first in range(0, len(of_images), CHUNK)])
    _compare_property(path.with_name("property"), len(numbers))
    names = number_names(numbers.astype(np.int64))
    return RecordSource(path, names, labels, set_aside, keys[good], offsets[good], descriptor)


def _record_file(place: Path, choice: Choice) -> Path:
    """A record file, or that of a folder: `train.rec`, the one that is chosen, or the only one."""
    if not place.is_dir():
        return place.parent / choose([place.name], choice, str(place))[0]
    names = sorted(path.name for path in place.glob("*.rec"))
    if choice == EVERYTHING and "train.rec" in names:
        return place / "train.rec"
    names = choose(names, choice, str(place))
    if len(names) > 1:
        raise ShardError(f"{place}: got {', '.join(names)}, wanted one record file: give its path")
    return place / names[0]


def _positions(index: Path, words: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[records] keys in ascending order and byte offsets, from the index or by looking for records."""
    if not index.is_file():
        offsets = part_starts(words)
        return np.arange(len(offsets)), offsets
    if not index.stat().st_size:
        raise ShardError(f"{index}: got an empty index, wanted keys and offsets; without it the file is searched")
    try:
        table = np.loadtxt(index, np.int64, ndmin=2, usecols=(0, 1))
    except ValueError as error:
        raise ShardError(f"{index}: got a line that is not a key and an offset ({error})") from error
    keys, offsets = (column.copy() for column in table.T)
    if _ascending(keys):
        return keys, offsets
    order = np.argsort(keys, kind="stable")
    return keys[order], offsets[order]


def _ascending(values: NDArray[np.int64]) -> bool:
    """Whether each is above the one before, as nearly all indices are: then nothing has to be sorted or repeats."""
    return bool((values[1:] > values[:-1]).all())


def _listed_before(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[records] whether an earlier record has the same value."""
    if _ascending(values):
        return np.zeros(len(values), bool)
    repeated = np.ones(len(values), bool)
    repeated[np.unique(values, return_index=True)[1]] = False
    return repeated


def _compare_property(path: Path, identities: int) -> None:
    """Warn if `property` (`identities,height,width`) gives another number of identities; the records count."""
    if not path.is_file():
        return
    first = path.read_text(errors="replace").split(",")[0].strip()
    if first != str(identities):
        logger.warning("%s: got %r identities, the records have %d; the records count", path, first, identities)


def _read_headers(mapping: mmap.mmap, words: NDArray[np.uint32], offsets: NDArray[np.int64]) -> _Headers:
    """Headers of the records at `offsets` of a file that is mapped, and its words: a million at a time."""
    count = len(offsets)
    headers = _Headers(np.zeros((count, 2), np.float32), np.zeros(count, bool), np.zeros(count, np.uint8))
    for first in range(0, count, CHUNK):
        some = slice(first, first + CHUNK)
        _read_some_headers(words, len(mapping), offsets[some], headers.part(some))
        mapping.madvise(mmap.MADV_DONTNEED)  # what was read would count as this process's memory until the end
    return headers


def _read_some_headers(words: NDArray[np.uint32], size: int, offsets: NDArray[np.int64], into: _Headers) -> None:
    def word(place: NDArray[np.int64] | int) -> NDArray[np.uint32]:
        """The words so many words after each record's start; the last word of the file if that is past its end."""
        return words[np.clip(offsets // 4 + place, 0, len(words) - 1)]

    length = (word(1) & LENGTH_MASK).astype(np.int64)
    kind, flag = word(1) >> LENGTH_BITS, word(2).astype(np.int64)
    header_size = IMAGE_HEADER.size + 4 * flag
    end = PART_HEADER.size + (length + 3) // 4 * 4
    is_record = (offsets >= 0) & (offsets % 4 == 0) & (word(0) == MAGIC) & (kind <= FIRST)
    into.has_image[:] = (length > header_size) | (kind == FIRST)
    # With flag 0 the label stands in the header, else all labels stand behind it.
    into.labels[:, 0] = np.where(flag == 0, word(3), word(8)).astype("<u4").view("<f4")
    into.labels[:, 1] = word(9).view("<f4")
    into.problem[(length < header_size) | (flag > length)] = TOO_MANY_LABELS
    into.problem[(offsets + end < size) & (word(end // 4) != MAGIC)] = WRONG_LENGTH
    into.problem[offsets + PART_HEADER.size + length > size] = TRUNCATED
    into.problem[~is_record] = NO_RECORD


def _check_labels(keys: NDArray[np.int64], headers: _Headers) -> None:
    """Mark image records whose label is no number of an identity, or not that of the other images of their run."""
    label = headers.labels[:, 0]
    with np.errstate(invalid="ignore"):
        whole = (label >= 0) & (label < EXACT_KEYS) & (label == np.floor(label))
    headers.problem[(headers.problem == SOUND) & headers.has_image & ~whole] = NO_IDENTITY
    starts, ends = _runs(keys, headers)
    firsts, stops = np.searchsorted(keys, starts), np.searchsorted(keys, ends)
    sizes, most = np.zeros(len(starts), np.int64), np.full(len(starts), NO_MAJORITY)
    seen = np.zeros(EXACT_KEYS, bool)  # the labels of images inside runs
    for some in _together(firsts, len(keys)):
        records = np.arange(firsts[some.start], stops[some.stop - 1])
        run = np.searchsorted(firsts[some], records, side="right") - 1
        inside = (records < stops[some][run]) & headers.has_image[records] & (headers.problem[records] == SOUND)
        records, run = records[inside], run[inside]
        labels = label[records].astype(np.int64)
        seen[labels] = True
        sizes[some] = np.bincount(run, minlength=len(sizes[some]))
        is_odd = _is_odd(run, labels)
        most[some][run[~is_odd]] = labels[~is_odd]
        headers.problem[records[is_odd]] = OTHER_IDENTITY
    for run in _odd_alone(sizes, most, seen).tolist():
        records = np.arange(firsts[run], stops[run])
        headers.problem[records[headers.has_image[records] & (headers.problem[records] == SOUND)]] = OTHER_IDENTITY


def _together(firsts: NDArray[np.int64], records: int) -> Iterator[slice]:
    """Runs, as many at a time as begin within a million records."""
    cuts = np.unique(np.append(np.searchsorted(firsts, np.arange(0, records, CHUNK)), len(firsts)))
    return starmap(slice, pairwise(cuts.tolist()))


def _runs(keys: NDArray[np.int64], headers: _Headers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First keys, ascending, and ends of the identity records' ranges; one that overlaps another is not used."""
    ranges = (headers.problem == SOUND) & ~headers.has_image & (keys != 0) & (headers.labels[:, 1] < EXACT_KEYS)
    pairs = headers.labels[ranges].astype(np.float64)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    starts, ends = pairs[np.argsort(pairs[:, 0], kind="stable")].T
    apart = np.append(True, starts[1:] >= ends[:-1]) if len(starts) else np.empty(0, bool)
    sound = apart & np.append(apart[1:], True)
    return starts[sound], ends[sound]


def _is_odd(run: NDArray[np.int64], label: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[images] whether a label differs from that of most images of its run; all of a run without a majority."""
    _, of_pair, counts = np.unique(run * EXACT_KEYS + label, return_inverse=True, return_counts=True)
    is_odd: NDArray[np.bool_] = 2 * counts[of_pair] <= np.bincount(run)[run]
    return is_odd


def _odd_alone(sizes: NDArray[np.int64], most: NDArray[np.int64], seen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Runs of one image whose label is odd: those beside it leave out exactly one number that no image has.

    Such an image has no other to compare with: 4, 9, 6 without any 5.

    Args:
        sizes: [runs] images in each.
        most: [runs] the label of most of them, or `NO_MAJORITY`.
        seen: [labels] whether an image has it.
    """
    runs = np.flatnonzero(sizes)
    label = np.concatenate([[-1], most[runs], [NO_MAJORITY]])  # as if 0 were the first run's
    before, after, skipped = label[:-2], label[2:], label[:-2] + 1
    is_skipped = (after - before == 2) & (label[1:-1] != skipped) & ~seen[np.maximum(skipped, 0)]
    return runs[is_skipped & (sizes[runs] == 1)]


def _missing_images(file: str, keys: NDArray[np.int64], headers: _Headers) -> list[SetAside]:
    """Whether record 0 describes as many samples as there are, below the keys that float32 holds exactly."""
    if not len(keys) or keys[0] or headers.problem[0] or headers.has_image[0]:
        return []
    images = (headers.has_image | (headers.problem != SOUND)) & (headers.problem != LISTED_TWICE)
    described, there = float(headers.labels[0, 0]) - 1, int(images.sum())
    if not there < described < EXACT_KEYS:  # fewer, if images were appended
        return []
    return [SetAside(f"{file}:0", f"describes {described:.0f} images: got {there}", int(described) - there)]


def _problems(file: str, keys: NDArray[np.int64], headers: _Headers) -> list[SetAside]:
    set_aside = []
    for i in np.flatnonzero(headers.problem).tolist():
        reason = f"{REASONS[headers.problem[i]]} (label {headers.labels[i, 0]:g})"
        set_aside.append(SetAside(f"{file}:{keys[i]}", reason))
    return set_aside
