"""What the head learns of the labels: each sample's target angle is kept, and large ones are listed after an epoch."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from cluster.stop import one_line
from pipeline.reading.order import Order
from pipeline.reading.tars import ShardSet
from pipeline.run.angles import TargetCosines, write_suspects
from pipeline.run.folder import RunFolder
from pipeline.training.step import Outcome, Severity

logger = logging.getLogger(__name__)


class Suspects:
    """Keeps the target angles of a run's samples, on its first rank, and lists those that are large.

    Args:
        run, shards, order: of the run.
        degrees: the mean angle beyond which a sample is listed.
    """

    def __init__(self, run: Path, shards: ShardSet, order: Order, degrees: float) -> None:
        folder = RunFolder(run)
        # An order of its own: the reader's keeps the permutations of the newest batch.
        self._cosines = TargetCosines(folder.cosines, replace(order), shards.manifest.digest)
        self._file = folder.suspects
        self._shards, self._order, self._degrees = shards, order, degrees
        self._failing = False

    def put(self, step: int, outcome: Outcome) -> None:
        """Keep what the batch at `step` gave, and write the list if it was the epoch's last.

        A disk that takes or gives nothing is reported once, and training continues.
        """
        cosine_G = np.full(self._order.global_batch, np.nan, np.float32)
        if outcome.severity == Severity.GOOD:
            valid_G = outcome.valid_G.numpy()
            cosine_G[valid_G] = outcome.target_cosine_G.numpy()[valid_G]
        try:
            self._cosines.put(step, cosine_G)
            if (step + 1) % self._order.steps_per_epoch == 0:
                self._list(self._order.epoch_of(step))
        except OSError as error:
            if not self._failing:
                logger.warning("%s; training continues without its target angles", one_line(error))
            self._failing = True
        else:
            self._failing = False

    def _list(self, epoch: int) -> None:
        found = write_suspects(self._file, self._shards, self._cosines.means(epoch), self._degrees)
        logger.info("%s: %d samples beyond %g degrees after epoch %d", self._file, found, self._degrees, epoch)
