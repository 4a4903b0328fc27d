"""How a source differs from the set that was made of it: samples that came, went or changed, by key and identity.

A finished set has its samples' names in its tars. One that is being made has few of them, so the names that it began
with are kept beside its plan until the set is finished. Names are kept, and compared, as hashes: 16 bytes a sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.files import write_all, written_whole
from pipeline.shards.sources import Source

Hashes = NDArray[np.uint64]  # [samples, 2] of 64 bits: of a sample's key, and of its identity

AT_ONCE = 1 << 16  # samples whose hashes are written together


class Changes(NamedTuple):
    """How many samples a source has more, less and otherwise than a set that was made of it."""

    came: int
    went: int
    changed: int

    def __str__(self) -> str:
        return f"{self.came:,} samples came, {self.went:,} went, {self.changed:,} changed"


def changes(now: Hashes, before: Hashes) -> Changes:
    """Compare two listings; a key may have several samples, and one that is another identity's now has changed."""
    rows = np.concatenate([now, before])
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    rows, sign = rows[order], np.repeat([1, -1], [len(now), len(before)])[order]
    is_key, is_pair = np.ones((2, len(rows)), bool)  # whether another key, and another key or identity, begins
    is_key[1:] = rows[1:, 0] != rows[:-1, 0]
    is_pair[1:] = is_key[1:] | (rows[1:, 1] != rows[:-1, 1])
    more = np.add.reduceat(sign, np.flatnonzero(is_pair))  # samples of a pair that are there now and were not
    keys = np.flatnonzero(is_key[is_pair])
    extra, lost = np.add.reduceat(more.clip(0), keys), np.add.reduceat((-more).clip(0), keys)
    sums = (extra - lost).clip(0), (lost - extra).clip(0), np.minimum(extra, lost)
    return Changes(*(int(column.sum()) for column in sums))


def hashes_of(source: Source) -> Hashes:
    """Key and identity of each sample."""
    return np.fromiter(_hashes_in(source), "<u8", 2 * len(source.labels)).reshape(-1, 2)


def _hashes_in(source: Source) -> Iterator[int]:
    """Those of the samples, one after another."""
    identities = [hash_of(name) for name in source.identities]
    for sample, label in enumerate(source.labels.tolist()):
        yield hash_of(source.key(sample))
        yield identities[label]


def write_hashes(path: Path, source: Source) -> None:
    """Keep the hashes of a source's names in a file.

    Raises:
        NotWrittenError: the disk is full or read-only.
    """
    numbers = _hashes_in(source)
    with written_whole(path, synced=False) as file:
        while some := list(islice(numbers, 2 * AT_ONCE)):
            write_all(file, np.array(some, "<u8").tobytes())


def read_hashes(path: Path) -> Hashes:
    """What `write_hashes` has kept."""
    return np.fromfile(path, "<u8").reshape(-1, 2)


def hash_of(name: str) -> int:
    """64 bits that stand for a name, whatever bytes it has."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "little")
