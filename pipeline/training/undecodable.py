"""Samples that cannot be decoded: each is reported once and remembered, and there is a limit to their number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from cluster.ranks.collectives import Group, gather_objects, rank_in
from cluster.stop import one_line
from pipeline.files import NotWrittenError
from pipeline.reading.tars import ShardSet
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.views.undecodable import note_undecodable, read_undecodable

logger = logging.getLogger(__name__)

# Of fewer samples no share is taken, so that one bad image in a first small batch does not end a run.
LEAST_SAMPLES = 1000

_NAMED = 10  # samples of a rank, and in the message


class Remembered:
    """The samples that are known to be undecodable, the same on every rank: from the run's list and from this process.

    To decode one costs a batch its speed, so it is not done again: not in the next epoch, and not after a restart.

    Args:
        file: the run's list, which the first rank reads and writes.
        shards: the samples.
        group: all ranks. Making one is a collective (gather).
    """

    def __init__(self, file: Path, shards: ShardSet, group: Group) -> None:
        self._file, self._shards, self._group = file, shards, group
        self.samples = set(gather_objects(self._read() if rank_in(group) == 0 else [], group)[0])

    def _read(self) -> list[int]:
        try:
            listed = read_undecodable(self._file, self._shards.manifest)
        except FileNotFoundError:
            return []
        except OSError as error:
            logger.warning("%s; training continues without it", one_line(error))
            return []
        if listed:
            logger.warning("%s: leaving out %d samples that could not be decoded before", self._file, len(listed))
        return listed

    def add(self, found: Sequence[int], step: int) -> None:
        """Remember what the ranks found in a step, and report it on the first. A collective (gather).

        A list that cannot be written is reported, and training continues.
        """
        new = sorted(set(chain.from_iterable(gather_objects(list(found), self._group))) - self.samples)
        self.samples.update(new)
        if rank_in(self._group) != 0 or not new:
            return
        for sample in new:
            logger.warning("cannot decode %s: left out from step %d on", self._shards.describe(sample), step)
        try:
            note_undecodable(self._file, self._shards.manifest, new, self._shards.describe)
        except NotWrittenError as error:
            logger.warning("%s; training continues", error)


class UndecodableLimit:
    """Counts what this process has read, the same on every rank, and names what this rank could not decode.

    Args:
        share: the largest allowed, from 0 to 1.
        describe: where a sample lies, in words.
        group: all ranks.
    """

    def __init__(self, share: float, describe: Callable[[int], str], group: Group) -> None:
        self._share, self._describe, self._group = share, describe, group
        self._read, self._undecodable = 0, 0
        self._named: dict[int, None] = {}  # each sample once, in the order met

    def add(self, here: Sequence[int], undecodable: int, read: int) -> None:
        """Count a global batch. A collective (gather), only if the limit is passed: on every rank or on none.

        Args:
            here: ids of the undecodable samples of this rank's share of the batch.
            undecodable: how many there are on all ranks; the same number on every rank.
            read: samples in the global batch.

        Raises:
            ShardError: on every rank, when more cannot be decoded than is allowed, naming some.
        """
        for sample in here:
            if len(self._named) < _NAMED:
                self._named[sample] = None
        self._undecodable += undecodable
        self._read += read
        if self._undecodable <= self._share * max(self._read, LEAST_SAMPLES):
            return
        mine = [self._describe(sample) for sample in self._named]
        named = list(dict.fromkeys(chain.from_iterable(gather_objects(mine, self._group))))[:_NAMED]
        raise ShardError(
            f"data.max_undecodable: {self._undecodable} of {self._read} samples read so far cannot be decoded, wanted "
            f"at most {self._share:.2%} (of {LEAST_SAMPLES} samples if fewer were read); among them "
            f"{'; '.join(named)}. Find them all with `python stages/shard.py verify SHARDS --decode-every 1`; those in "
            "undecodable.tsv of the run's folder are not tried again: delete it after a repair"
        )
