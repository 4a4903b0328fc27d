"""How many samples may be undecodable before the run ends: a loss over what is left would be of another set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from cluster.collectives import Group, gather_objects
from pipeline.shards.manifest import ShardError

# Of fewer samples no share is taken, so that one bad image in a first small batch does not end a run.
LEAST_SAMPLES = 1000

_NAMED = 10  # samples of a rank, and in the message


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
            f"{'; '.join(named)}. Find them all with `python stages/shard.py verify SHARDS --decode-every 1`"
        )
