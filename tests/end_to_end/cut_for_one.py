"""Stands for train.py: the second rank alone finds a tar cut, after some batches."""

import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.reading.tars import ShardSet
from pipeline.shards.format.manifest import ShardError
from tests.end_to_end.launcher import TRAIN

BATCHES = 6
REASON = "00000.tar: got 5 bytes, wanted 10"

if os.environ.get("RANK") == "1":
    batches: list[Sequence[int]] = []
    read = ShardSet.read

    def read_few(self: ShardSet, ids: Sequence[int]) -> list[Any]:
        batches.append(ids)
        if len(batches) > BATCHES:
            raise ShardError(REASON)
        return read(self, ids)

    ShardSet.read = read_few  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    sys.argv[0] = str(TRAIN)
    runpy.run_path(str(TRAIN), run_name="__main__")
