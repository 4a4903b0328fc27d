"""Images that are files of their own: what a folder scan and a list file have in common."""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.images import SetAsideError
from pipeline.shards.manifest import ShardError
from pipeline.shards.sources import Read, SetAside, changed_at

READ_BYTES = 1 << 14
# Faults of one file. Any other error of the system (a mount gone, too many open files) ends the run.
FAULTS_OF_ONE_FILE = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}


@dataclass(frozen=True)
class FileSource:
    """Image files under `root`, in the order of the listing.

    Their relative paths lie end to end in one string, since ten million Python strings take a gigabyte: path `i` is
    `paths[path_ends[i - 1]:path_ends[i]]`.
    """

    kind: str
    root: str
    identities: Sequence[str]
    labels: NDArray[np.uint32]
    set_aside: Sequence[SetAside]
    paths: str
    path_ends: NDArray[np.int64]  # [samples]
    sequential: bool = False

    def digest(self) -> str:
        """SHA-256 of identities, labels and paths."""
        digest = hashlib.sha256()
        columns = (self.labels.tobytes(), self.path_ends.tobytes())
        for part in ("\n".join(self.identities).encode(), *columns, os.fsencode(self.paths)):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """The path as it was listed: relative to the root, or absolute."""
        end_of = self.path_ends.item
        return self.paths[end_of(sample - 1) if sample else 0 : end_of(sample)]

    def modified(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """[samples] when each file was last changed."""
        return np.array([changed_at(key, self._folder) for key in self._keys(samples)])

    def read(self, sample: int) -> bytes:
        """The file's bytes; a missing or forbidden file is set aside, a vanished disk ends the run."""
        ((_, image, _),) = self.read_many(np.array([sample]))
        if isinstance(image, SetAsideError):
            raise image
        return image

    def read_many(self, samples: NDArray[np.int64]) -> Iterator[Read]:
        """Files, each read as it is taken."""
        for key in self._keys(samples):
            try:
                yield Read(key, _read_file(key, self._folder))
            except OSError as error:
                if error.errno not in FAULTS_OF_ONE_FILE:
                    raise ShardError(f"{self.root}: {key}: {error.strerror}") from error
                yield Read(key, SetAsideError(f"unreadable: {error.strerror}"))

    def _keys(self, samples: NDArray[np.int64]) -> list[str]:
        starts = np.where(samples > 0, self.path_ends[samples - 1], 0).tolist()
        ends = self.path_ends[samples].tolist()
        return [self.paths[start:end] for start, end in zip(starts, ends, strict=True)]

    @cached_property
    def _folder(self) -> int:
        """The root, open: the system then looks up a short relative path for each image, not the whole."""
        return os.open(self.root, os.O_RDONLY)


def _read_file(path: str, folder: int) -> bytes:
    """A file's bytes. `os.read` takes half the time of `open().read()`, and faces fit one call."""
    descriptor = os.open(path, os.O_RDONLY, dir_fd=folder)
    try:
        data = os.read(descriptor, READ_BYTES)
        if len(data) < READ_BYTES:
            return data
        pieces = [data]
        while data := os.read(descriptor, READ_BYTES):
            pieces.append(data)
        return b"".join(pieces)
    finally:
        os.close(descriptor)
