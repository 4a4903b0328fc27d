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

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Order:
    """The order of samples over all of training.

    The permutations behind the newest batch are kept for the next one. So in the course of an epoch each window is
    shuffled once, whatever the number of streams (once more if a stream ends, and the next one starts, inside it).

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
    _newest: _Epoch | None = field(default=None, init=False, repr=False, compare=False)

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

    @cached_property
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

    def rank_batch(self, step: int, rank: int, num_ranks: int, accumulation: int = 1) -> Ids:
        """Rank r's share of a global batch, its micro-batches one after another.

        Micro-batch m of A is the slice [mG/A, (m+1)G/A) of the global batch, whatever the number of ranks; rank r of N
        has the r-th of N equal pieces of each. A · N must divide G.
        """
        if self.global_batch % (num_ranks * accumulation):
            raise ValueError(
                f"global_batch: got {self.global_batch}, wanted a multiple of {num_ranks} ranks × accumulation "
                f"{accumulation}"
            )
        return self.batch(step).reshape(accumulation, num_ranks, -1)[:, rank].reshape(-1)

    def _samples_at(self, number: int, places: Ids) -> Ids:
        """Sample ids at `places`, which rise, of the shuffled sequence of epoch `number`."""
        epoch = self._epoch(number)
        windows, first = np.unique(np.searchsorted(epoch.window_starts, places, side="right") - 1, return_index=True)
        shuffled = {w: epoch.shuffled[w] if w in epoch.shuffled else self._shuffle(epoch, w) for w in windows.tolist()}
        # Kept in place of those before, and no others: a stream needs its window again until it has read it to the
        # end, and nothing else is needed again. Replaced as a whole, since a fault is described in another thread.
        object.__setattr__(self, "_newest", replace(epoch, shuffled=shuffled))
        parts = np.split(places, first[1:])
        inside = [part - epoch.window_starts[w] for w, part in zip(windows, parts, strict=True)]
        return np.concatenate([ids[at] for ids, at in zip(shuffled.values(), inside, strict=True)])

    def _epoch(self, number: int) -> _Epoch:
        if self._newest is not None and self._newest.number == number:
            return self._newest
        counts, _ = self._tars
        tars = self._generator(number, 0).permutation(len(counts))
        per_window = np.add.reduceat(counts[tars], np.arange(0, len(counts), self.window))
        return _Epoch(number, tars, np.cumsum(per_window) - per_window, {})

    def _shuffle(self, epoch: _Epoch, window: int) -> Ids:
        """The shuffled sample ids of a window of tars."""
        counts, first_ids = self._tars
        tars = epoch.tars[window * self.window : (window + 1) * self.window]
        ids = np.concatenate([np.arange(first_ids[t], first_ids[t] + counts[t]) for t in tars])
        return self._generator(epoch.number, window + 1).permutation(ids)

    @cached_property
    def _tars(self) -> tuple[Ids, Ids]:
        """Of each tar how many samples it holds, and the id of its first."""
        counts = np.asarray(self.samples_per_tar, dtype=np.int64)
        return counts, np.cumsum(counts) - counts

    def _generator(self, epoch: int, part: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch, part])))


@dataclass(frozen=True)
class _Epoch:
    number: int
    tars: Ids  # in this epoch's order
    window_starts: Ids  # place of each window's first sample
    shuffled: dict[int, Ids]  # sample ids of the windows that the newest batch took samples from
