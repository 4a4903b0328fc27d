"""Which sample stands at which position of training: pure integer functions of (set, seed, position).

There is no iterator state and no dependence on the number of ranks, so the reader's whole checkpoint is one
integer and 1, 2, 3 or 64 ranks train on the same global batches. An epoch is built so that every step of it
can be computed without the steps before:

1. permute the tars and lay their samples end to end;
2. shuffle inside windows of `window` consecutive tars (samples of one tar come from one place on the disk, so
   reads stay near one another);
3. drop the remainder (fewer than G samples, others each epoch) and cut the rest into `streams` equal pieces;
4. global batch t takes the next G / streams samples of every piece.

Permutations come from Philox keyed by (seed, epoch, window), as in mosaicml/streaming's partitioning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.int64]]

_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Order:
    """The order of samples over all of training.

    Args:
        samples_per_tar: how many samples each tar holds; sample ids count through the tars in their order.
        seed: another seed, another order.
        global_batch: G, samples a step over all ranks.
        streams: pieces of the epoch that are read side by side; divides G.
        window: tars that are shuffled together.

    Raises:
        ValueError: naming the number that does not fit.
    """

    samples_per_tar: tuple[int, ...]
    seed: int
    global_batch: int
    streams: int = 1
    window: int = 4

    def __post_init__(self) -> None:
        if self.samples < self.global_batch:
            raise ValueError(
                f"global_batch: got {self.global_batch}, but the set holds {self.samples} samples; "
                "wanted at most one epoch a step"
            )
        if self.streams < 1 or self.global_batch % self.streams:
            raise ValueError(f"streams: got {self.streams}, wanted a divisor of global_batch {self.global_batch}")
        if self.window < 1:
            raise ValueError(f"window: got {self.window}, wanted at least 1 tar")

    @property
    def samples(self) -> int:
        """Samples in the set."""
        return sum(self.samples_per_tar)

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch; the remainder is dropped."""
        return self.samples // self.global_batch

    def epoch_of(self, step: int) -> int:
        """The epoch that `step` (from 0) belongs to."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> Ids:
        """Sample ids of global batch `step`, shape [G], stream by stream; nothing before it is replayed."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        piece = self.steps_per_epoch * self.global_batch // self.streams
        per_stream = self.global_batch // self.streams
        starts = np.arange(self.streams, dtype=np.int64) * piece + step_in_epoch * per_stream
        places = (starts[:, None] + np.arange(per_stream, dtype=np.int64)).reshape(-1)
        return self._samples_at(epoch, places)

    def rank_batch(self, step: int, rank: int, num_ranks: int) -> Ids:
        """Rank r's share of a global batch: the slice [rG/N, (r+1)G/N). N must divide G."""
        if self.global_batch % num_ranks:
            raise ValueError(f"global_batch: got {self.global_batch}, wanted a multiple of {num_ranks} ranks")
        share = self.global_batch // num_ranks
        return self.batch(step)[rank * share : (rank + 1) * share]

    def _samples_at(self, epoch: int, places: Ids) -> Ids:
        """Sample ids at `places` of the epoch's shuffled sequence."""
        layout = _epoch_layout(self.samples_per_tar, self.seed, epoch, self.window)
        windows = np.searchsorted(layout.window_starts, places, side="right") - 1
        ids = np.empty_like(places)
        for window in np.unique(windows):
            mask = windows == window
            inside = places[mask] - layout.window_starts[window]
            ids[mask] = _window_samples(self.samples_per_tar, self.seed, epoch, self.window, int(window))[inside]
        return ids


@dataclass(frozen=True)
class _EpochLayout:
    tars: Ids  # the tars in this epoch's order
    window_starts: Ids  # place of each window's first sample


# A stream stays in one window for many steps, so the newest few layouts and windows serve nearly every step.
@lru_cache(maxsize=4)
def _epoch_layout(samples_per_tar: tuple[int, ...], seed: int, epoch: int, window: int) -> _EpochLayout:
    counts = np.asarray(samples_per_tar, dtype=np.int64)
    tars = _generator(seed, epoch, 0).permutation(len(counts))
    per_window = np.add.reduceat(counts[tars], np.arange(0, len(counts), window))
    return _EpochLayout(tars, np.concatenate([[0], np.cumsum(per_window)[:-1]]))


@lru_cache(maxsize=64)
def _window_samples(samples_per_tar: tuple[int, ...], seed: int, epoch: int, window: int, index: int) -> Ids:
    counts, first_ids = _tar_arrays(samples_per_tar)
    tars = _epoch_layout(samples_per_tar, seed, epoch, window).tars[index * window : (index + 1) * window]
    ids = np.concatenate([np.arange(first_ids[t], first_ids[t] + counts[t]) for t in tars])
    return _generator(seed, epoch, index + 1).permutation(ids)


@lru_cache(maxsize=4)
def _tar_arrays(samples_per_tar: tuple[int, ...]) -> tuple[Ids, Ids]:
    counts = np.asarray(samples_per_tar, dtype=np.int64)
    return counts, np.concatenate([[0], np.cumsum(counts)[:-1]])


def _generator(seed: int, epoch: int, part: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, part])))


def mirrored(seed: int, epoch: int, ids: Ids) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each sample is flipped left to right in this epoch: a hash, not a random stream.

    splitmix64 (Steele, Lea & Flood, OOPSLA 2014) of (seed, epoch, sample), so that it does not depend on the
    ranks, on the batch or on what came before.
    """
    mixed = _splitmix64(np.asarray([seed], dtype=np.uint64))
    mixed = _splitmix64(mixed + np.uint64(epoch))
    return (_splitmix64(mixed + ids.astype(np.uint64)) >> np.uint64(63)).astype(bool)


def _splitmix64(state: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    z = state + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))
