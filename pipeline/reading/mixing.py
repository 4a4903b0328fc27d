"""How well the order of training mixes a set: how many streams that takes, and what a batch then holds.

A batch is taken from `streams` windows of a few tars each. A set that joins a small one with large ones mixes only if
most batches have a tar of the small one in one of their windows.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from pipeline.reading.order import Order
from pipeline.shards.format.index import sound_index
from pipeline.shards.format.manifest import Manifest, TarEntry

LEAST, MOST = 8, 64  # streams; each is a place on the disk that is read in turn with the others
MISSED = 0.01  # the share of batches that may have none of the smallest of the sets that were joined
LOOKED_AT = 64  # batches of an epoch
BATCH = 512  # global, of an order by default

Numbers = np.ndarray[Any, np.dtype[np.integer]]


class Mixing(NamedTuple):
    """What the batches of an order hold; its text is a line for the user.

    Attributes:
        order: the order.
        identities: mean number of identities in it.
        shuffled: what that would be if the whole set were shuffled at once.
        without_smallest: share of batches that hold nothing of the smallest of the sets that were joined; 0 if the set
            is not of several.
    """

    order: Order
    identities: float
    shuffled: float
    without_smallest: float

    def __str__(self) -> str:
        order = self.order
        return (
            f"{order.streams} streams of {order.window} tars, the default: a batch of {order.global_batch:,} holds "
            f"{self.identities:,.1f} identities, after a shuffle of the whole set {self.shuffled:,.1f}; "
            f"{self.without_smallest:.1%} of batches hold nothing of the smallest set"
        )


def streams_that_mix(manifest: Manifest, global_batch: int, window: int) -> int:
    """How many streams of windows of so many tars mix a set: a divisor of the global batch, at least 8 if there is one.

    Each window misses the smallest set that was joined with probability 1 - its share of the tars; all of them together
    do in at most `MISSED` of batches, unless that takes more than `MOST` streams, or more than there are windows.
    """
    tars = Counter(map(_set_of, manifest.tars))
    share, windows = min(tars.values()) / len(manifest.tars), -(-len(manifest.tars) // window)
    wanted = math.ceil(math.log(MISSED) / math.log1p(-share) / window) if share < 1 else LEAST
    wanted = max(LEAST, min(wanted, windows, MOST))
    divisors = [number for number in range(1, global_batch + 1) if global_batch % number == 0]
    return next((number for number in divisors if wanted <= number <= MOST), max(n for n in divisors if n <= MOST))


def mixing_by_default(folder: Path) -> Mixing:
    """How a set mixes in batches of `BATCH` if a recipe says nothing of its order.

    Raises:
        ShardError: there is no sound set in `folder`.
    """
    manifest = Manifest.load(folder)
    labels = sound_index(folder, manifest)["label"]
    batch = min(BATCH, manifest.samples)
    streams = streams_that_mix(manifest, batch, Order.window)
    return mixing_of(manifest, labels, Order(tuple(tar.samples for tar in manifest.tars), 0, batch, streams))


def mixing_of(manifest: Manifest, labels: Numbers, order: Order) -> Mixing:
    """What the batches of the first epoch hold, by `LOOKED_AT` of them; `labels` are [samples], as in the index."""
    set_of_tar = [_set_of(tar) for tar in manifest.tars]
    samples: Counter[str] = Counter()
    for name, tar in zip(set_of_tar, manifest.tars, strict=True):
        samples[name] += tar.samples
    smallest = np.array(set_of_tar) == min(samples, key=samples.__getitem__)
    steps = np.unique(np.linspace(0, order.steps_per_epoch - 1, LOOKED_AT).astype(int)).tolist()
    identities, missed = 0, 0
    for step in steps:
        ids = order.batch(step)
        identities += len(np.unique(labels[ids]))
        missed += not smallest[np.searchsorted(manifest.first_rows, ids, side="right") - 1].any()
    # A draw with replacement: a batch is a small part of a set.
    counts = np.bincount(labels)
    shuffled = float((1 - (1 - order.global_batch / len(labels)) ** counts).sum())
    return Mixing(order, identities / len(steps), shuffled, missed / len(steps))


def _set_of(tar: TarEntry) -> str:
    """The folder of the set that a tar was made for: a set joined from several names theirs."""
    return str(PurePosixPath(tar.name).parent)
