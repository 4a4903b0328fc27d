"""Where faces come from: each source lists its samples once and reads any of them by number."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.format.fields import NO_FIELDS, Fields
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.images import SetAsideError


class Read(NamedTuple):
    """What reading a sample gives: how it is named to users, its image or why that cannot be read, and its fields."""

    key: str
    image: bytes | SetAsideError
    fields: Fields = NO_FIELDS


class Source(Protocol):
    """Faces with identities. Sample `i` is the `i`-th of a listing that depends on the data alone.

    A new kind of source is one file in this folder and one line of the table in `detect`.
    """

    @property
    def kind(self) -> str:
        """What the manifest calls it."""

    @property
    def sequential(self) -> bool:
        """Whether reading is fast in the order of the listing only; such a source is shuffled by way of tars."""

    @property
    def identities(self) -> Sequence[str]:
        """Names in label order."""

    @property
    def labels(self) -> NDArray[np.uint32]:
        """[samples] identity number of each sample."""

    @property
    def set_aside(self) -> Sequence[SetAside]:
        """What listing already left out."""

    def digest(self) -> str:
        """SHA-256 of the listing: names and labels in order, not the images."""

    def key(self, sample: int) -> str:
        """`identity/file name`: how the sample is named to users."""

    def modified(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """[samples] when the file of each was last changed, in seconds since 1970; 0 if that is not known."""

    def read(self, sample: int) -> bytes:
        """The encoded image.

        Raises:
            SetAsideError: this image cannot be read; others can.
        """

    def read_many(self, samples: NDArray[np.int64]) -> Iterator[Read]:
        """Each of some samples in their order.

        What knows many samples at once reads them in less time: a store is asked for all of them together.
        """


def changed_at(path: str | Path, folder: int | None = None) -> float:
    """When a file was last changed or replaced, in seconds since 1970; 0 if it is not there.

    A file that is copied over with its old time of modification has a new time of change.
    """
    try:
        status = os.stat(path, dir_fd=folder)
    except OSError:
        return 0.0
    return max(status.st_mtime, status.st_ctime)


class OneByOne:
    """For a source that gains nothing from knowing many samples at once, and does not know when its files changed."""

    def modified(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """Not known."""
        return np.zeros(len(samples))

    def read_many(self: Source, samples: NDArray[np.int64]) -> Iterator[Read]:
        """As `Source` says, by `key` and `read`; without fields."""
        for sample in samples.tolist():
            try:
                image: bytes | SetAsideError = self.read(sample)
            except SetAsideError as error:
                image = error
            yield Read(self.key(sample), image)
