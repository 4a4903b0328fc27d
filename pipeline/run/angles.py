"""The target cosine of every sample in every epoch, and the samples whose label it makes doubtful.

Which sample stands at a position of training is a function of (set, seed, position), so an epoch's file holds the
cosines by position and no ids: a run that resumes, on any number of ranks, or goes back, writes the same places again.
On the first rank's disk a sample costs 2 bytes an epoch, of the newest `EPOCHS`; their means take 12 bytes of memory a
sample, between two epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files import make_folder, named, write_file
from pipeline.reading.order import Order
from pipeline.reading.tars import ShardSet

EPOCHS = 3  # whose mean is taken: enough to tell a bad day from a wrong label, and no older than the weights
_TYPE = np.dtype("<f2")

HEADER = "set\tsample\twhere\tdegrees\n"


class TargetCosines:
    """Files of an order's cosines, one an epoch, in a folder that is made if need be.

    Args:
        folder: where.
        order: which sample stands where.
        digest: of the manifest of the set that the order is of. A run may resume with another set of the same people:
            what stood at a place in the set before says nothing of the samples of this one.
    """

    def __init__(self, folder: Path, order: Order, digest: str) -> None:
        self._folder, self._order, self._digest = folder, order, digest

    def put(self, step: int, cosine_G: NDArray[np.float32]) -> None:
        """Keep what the global batch of `step` gave, in its order; NaN for a sample that gave nothing.

        Raises:
            NotWrittenError: the disk is full or read-only.
        """
        epoch, step_in_epoch = divmod(step, self._order.steps_per_epoch)
        file = self._file(epoch)
        if not file.is_file():
            make_folder(self._folder)
            unknown = np.full(self._order.steps_per_epoch * self._order.global_batch, np.nan, _TYPE)
            write_file(file, unknown.tobytes(), synced=False)
            for older in self._folder.glob("epoch-*.f16"):
                if int(older.stem.split("-")[1]) <= epoch - EPOCHS:
                    older.unlink(missing_ok=True)
        with named(file), file.open("r+b") as opened:
            opened.seek(step_in_epoch * self._order.global_batch * _TYPE.itemsize)
            opened.write(cosine_G.astype(_TYPE).tobytes())

    def means(self, epoch: int) -> NDArray[np.float32]:
        """The mean cosine of each sample of the set over the `EPOCHS` epochs up to this one; NaN of one without any."""
        total, count = np.zeros(self._order.samples, np.float32), np.zeros(self._order.samples, np.float32)
        for ids, cosines in self._found(epoch):
            known = ~np.isnan(cosines)
            total[ids[known]] += cosines[known]
            count[ids[known]] += 1
        with np.errstate(invalid="ignore"):
            return np.divide(total, count, out=total)

    def _found(self, epoch: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Samples and cosines of each step: a sample is at most once in an epoch."""
        steps, batch = self._order.steps_per_epoch, self._order.global_batch
        for one in range(max(0, epoch - EPOCHS + 1), epoch + 1):
            try:
                cosines = np.fromfile(self._file(one), _TYPE)
            except FileNotFoundError:
                continue
            if len(cosines) == steps * batch:
                for step in range(steps):
                    here = cosines[step * batch : (step + 1) * batch].astype(np.float32)
                    yield self._order.batch(one * steps + step), here

    def _file(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch:05d}-{self._digest[:12]}.f16"


def write_suspects(path: Path, shards: ShardSet, mean_cosine: NDArray[np.float32], degrees: float) -> int:
    """List the samples with a mean target angle above `degrees`, the largest first, and say how many there are.

    In ArcFace's training noise gathers there: Deng et al. (Sub-center ArcFace, ECCV 2020, section 3.3) drop what is
    beyond 75°. The list has the form of `pipeline.shards.views.undecodable`, and ``clean --suspects`` takes it.

    Raises:
        NotWrittenError: the disk is full or read-only.
    """
    angles = np.degrees(np.arccos(np.clip(mean_cosine, -1, 1)))
    suspects = np.flatnonzero(angles > degrees)  # NaN is not
    suspects = suspects[np.argsort(-angles[suspects], kind="stable")]
    digest = shards.manifest.digest
    lines = [f"{digest}\t{sample}\t{shards.tar_name(sample)}\t{angles[sample]:.1f}\n" for sample in suspects.tolist()]
    write_file(path, "".join([HEADER, *lines]).encode())
    return len(suspects)


def read_suspects(path: Path, digest: str) -> list[tuple[int, float]]:
    """Samples of the set with this digest, and their angles in degrees, in the file's order."""
    fields = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return [(int(sample), float(angle)) for one, sample, _, angle in fields if one == digest]
