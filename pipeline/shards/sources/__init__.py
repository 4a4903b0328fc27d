"""Where faces come from: each source lists its samples once and reads any of them by number."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class SetAside(NamedTuple):
    """One source file that is not in the shards, and why."""

    path: str
    reason: str


class Source(Protocol):
    """Faces with identities. Sample `i` is the `i`-th of a listing that depends on the data alone."""

    @property
    def kind(self) -> str:
        """What the manifest calls it."""

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
        """`identity/file name`: how the sample is named to people."""

    def read(self, sample: int) -> bytes:
        """The encoded image.

        Raises:
            SetAsideError: this image cannot be read; others can.
        """
