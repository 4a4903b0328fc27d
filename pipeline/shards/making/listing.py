"""How a source differs from the set that was made of it: samples that came, went or changed, by key and identity.

A finished set has its samples' names in its tars. One that is being made has few of them, so the names that it began
with are kept beside its plan, as hashes: 16 bytes a sample, until the set is finished.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.files import write_all, written_whole
from pipeline.shards.sources import Source

AT_ONCE = 1 << 16  # samples whose hashes are written together


class Changes(NamedTuple):
    """How many samples a source has more, less and otherwise than a set that was made of it."""

    came: int
    went: int
    changed: int

    def __str__(self) -> str:
        return f"{self.came:,} samples came, {self.went:,} went, {self.changed:,} changed"


def changes(now: Iterable[tuple[Hashable, Hashable]], before: Iterable[tuple[Hashable, Hashable]]) -> Changes:
    """Compare two listings of (key, identity); a key may have several samples, and those of others have changed."""
    new, old = _identities_by_key(now), _identities_by_key(before)
    came = went = changed = 0
    for key in new.keys() | old.keys():
        more, less = new.get(key, Counter()), old.get(key, Counter())
        extra, lost = (more - less).total(), (less - more).total()
        changed += min(extra, lost)
        came += max(0, extra - lost)
        went += max(0, lost - extra)
    return Changes(came, went, changed)


def names_in(source: Source) -> Iterator[tuple[str, str]]:
    """Key and identity of each sample."""
    for sample, label in enumerate(source.labels.tolist()):
        yield source.key(sample), source.identities[label]


def hashes_in(source: Source) -> Iterator[tuple[int, int]]:
    """Those as hashes of 64 bits."""
    identities = [_hash(name) for name in source.identities]
    for sample, label in enumerate(source.labels.tolist()):
        yield _hash(source.key(sample)), identities[label]


def write_hashes(path: Path, source: Source) -> None:
    """Keep the hashes of a source's names in a file.

    Raises:
        NotWrittenError: the disk is full or read-only.
    """
    numbers = chain.from_iterable(hashes_in(source))
    with written_whole(path, synced=False) as file:
        while some := list(islice(numbers, 2 * AT_ONCE)):
            write_all(file, np.array(some, "<u8").tobytes())


def read_hashes(path: Path) -> Iterator[tuple[int, int]]:
    """What `write_hashes` has kept."""
    for key, identity in np.fromfile(path, "<u8").reshape(-1, 2):
        yield int(key), int(identity)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


def _identities_by_key(names: Iterable[tuple[Hashable, Hashable]]) -> dict[Hashable, Counter[Hashable]]:
    found: dict[Hashable, Counter[Hashable]] = {}
    for key, identity in names:
        found.setdefault(key, Counter())[identity] += 1
    return found
