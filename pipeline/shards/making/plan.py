"""What will be written, decided before any file is: all that the bytes of a set of shards depend on."""

import contextlib
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.hashing import INCREMENT, mix64
from pipeline.shards.format.manifest import FORMAT, Made, ShardError
from pipeline.shards.format.tars import BLOCK
from pipeline.shards.images import SetAsideError, read_header
from pipeline.shards.sources import Source
from pipeline.shards.sources.loss import MANY, check_loss, refuse_lost

AT_ONCE = 1 << 20  # samples whose hashes are made together: a plan of 42 million is a gigabyte as it is


@dataclass(frozen=True)
class Plan:
    """Which samples go to which tar, in which order: `order[bounds[t]:bounds[t + 1]]` are those of tar `t`."""

    source: Source
    folder: Path
    made: Made
    image_height: int
    image_width: int
    order: NDArray[np.int64]
    bounds: NDArray[np.int64]
    max_rejected: float = 1.0  # share of samples that may be set aside; no byte depends on it

    @property
    def tars(self) -> int:
        """How many tars there will be."""
        return len(self.bounds) - 1

    def tar_name(self, tar: int) -> str:
        """File name of a tar without its suffix."""
        return f"faces-{tar:06d}"

    def facts(self) -> dict[str, object]:
        """What must be equal for two runs to write the same bytes."""
        made = {name: value for name, value in asdict(self.made).items() if name != "tool"}
        return {**made, "image_height": self.image_height, "image_width": self.image_width, "format": FORMAT}


def make_plan(
    source: Source,
    folder: Path,
    *,
    seed: int | None,
    samples_per_tar: int,
    size: tuple[int, int] | None,
    max_rejected: float = 1.0,
    where: str = "",
) -> Plan:
    """Plan the shards of `source` in `folder`.

    Args:
        source: where the faces are.
        folder: where the shards go.
        seed: of the shuffle over the whole set; None leaves the samples in the order of the source.
        samples_per_tar: the most that a tar holds; the tars are of nearly equal size.
        size: (height, width) in pixels of every image; None: that of the first readable one.
        max_rejected: the largest share of samples that may be set aside, from 0 to 1.
        where: the path or URL of the source, for the message; without it, its kind.

    Raises:
        ShardError: a number out of range, or no image of the source is readable.
        TooManyRejectedError: listing already set aside more samples than `max_rejected` allows.
    """
    check_loss(where or source.kind, len(source.labels), source.set_aside, max_rejected)
    if samples_per_tar < 1:
        raise ShardError(f"samples per tar: got {samples_per_tar}, wanted at least 1")
    height, width = size or _first_size(source)
    made = Made(source.kind, source.digest(), seed, samples_per_tar, tool_version())
    samples = len(source.labels)
    order = np.arange(samples) if seed is None else permutation(samples, seed)
    return Plan(source, folder, made, height, width, order, cut(samples, samples_per_tar), max_rejected)


def samples_in(source: Source, tar_bytes: int) -> int:
    """How many samples of the source make a tar of about so many bytes, by the mean of a thousand of them."""
    sizes = []
    for sample in range(0, len(source.labels), max(1, len(source.labels) // 1000)):
        with contextlib.suppress(SetAsideError):
            sizes.append(len(source.read(sample)))
    # Three headers, padded label and key, and half a block of padding behind the image.
    mean = sum(sizes) / max(1, len(sizes)) + 5.5 * BLOCK
    return max(1, round(tar_bytes / mean))


def tool_version() -> str:
    """Name and version of this software, as the manifest keeps it."""
    return f"spherescale {version('spherescale')}"


def _first_size(source: Source) -> tuple[int, int]:
    """(height, width) of the first readable image of the listing; not all are tried if the source is not there."""
    keys: list[str] = []
    faults: list[SetAsideError] = []
    for sample in range(len(source.labels)):
        try:
            return read_header(source.read(sample))[1:]
        except SetAsideError as error:
            if len(faults) < MANY:
                keys.append(source.key(sample))
                faults.append(error)
                refuse_lost(source, keys, faults)
    raise ShardError(f"no readable image in {len(source.labels)} files; the first: {keys[0]}: {faults[0]}")


def permutation(samples: int, seed: int) -> NDArray[np.int64]:
    """[samples] permutation of range(samples), the same on every machine and NumPy version.

    Positions are sorted by a hash of (seed, position). The hash is a bijection of 64 bits, so no two tie. NumPy's own
    `permutation` may change between versions (NEP 19), and with it the bytes of every tar.
    """
    hashes = np.empty(samples, np.uint64)
    with np.errstate(over="ignore"):  # the hash is arithmetic modulo 2**64
        start = mix64(np.array([seed % 2**64], dtype=np.uint64))
        for first in range(0, samples, AT_ONCE):
            some = np.arange(first, min(first + AT_ONCE, samples), dtype=np.uint64)
            hashes[first : first + AT_ONCE] = mix64(start + some * INCREMENT)
    return np.argsort(hashes).astype(np.int64, copy=False)


def cut(samples: int, samples_per_tar: int) -> NDArray[np.int64]:
    """[tars + 1] bounds of nearly equal tars: sizes differ by at most one, none exceeds `samples_per_tar`."""
    tars = -(-samples // samples_per_tar)
    return np.arange(tars + 1, dtype=np.int64) * samples // max(tars, 1)
