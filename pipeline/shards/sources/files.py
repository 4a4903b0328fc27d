"""Images that are files of their own: what a folder scan and a list file have in common."""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.format.fields import NO_FIELDS, Fields, of_json
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.images import SetAsideError, UnreadableError, check_bytes
from pipeline.shards.sources import Read, changed_at

READ_BYTES = 1 << 14
# Faults of one file. Any other error of the system (a mount gone, too many open files) ends the run.
FAULTS_OF_ONE_FILE = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EIO,
}


@dataclass(frozen=True)
class Texts:
    """Many short texts end to end in one, since ten million Python strings take a gigabyte.

    Text `i` is `joined[ends[i - 1]:ends[i]]`.
    """

    joined: str
    ends: NDArray[np.int64]  # [texts]

    def __getitem__(self, number: int) -> str:
        end_of = self.ends.item
        return self.joined[end_of(number - 1) if number else 0 : end_of(number)]

    def some(self, numbers: NDArray[np.int64]) -> list[str]:
        """Those of some numbers."""
        starts = np.where(numbers > 0, self.ends[numbers - 1], 0).tolist()
        ends = self.ends[numbers].tolist()
        return [self.joined[start:end] for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class FileSource:
    """Image files under `root`, in the order of the listing, by their relative paths; `notes` are fields as JSON."""

    kind: str
    root: str
    identities: Sequence[str]
    labels: NDArray[np.uint32]
    set_aside: Sequence[SetAside]
    paths: Texts
    notes: Texts | None = None
    sequential: bool = False

    def digest(self) -> str:
        """SHA-256 of identities, labels, paths and fields."""
        digest = hashlib.sha256()
        columns = [self.labels.tobytes(), self.paths.ends.tobytes(), os.fsencode(self.paths.joined)]
        if self.notes is not None:
            columns += [self.notes.ends.tobytes(), self.notes.joined.encode()]
        for part in ("\n".join(self.identities).encode(), *columns):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """The path as it was listed: relative to the root, or absolute."""
        return self.paths[sample]

    def modified(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """[samples] when each file was last changed."""
        return np.array([changed_at(path, self._folder) for path in self.paths.some(samples)])

    def read(self, sample: int) -> bytes:
        """The file's bytes; a missing or forbidden file is set aside, a vanished disk ends the run."""
        ((_, image, _),) = self.read_many(np.array([sample]))
        if isinstance(image, SetAsideError):
            raise image
        return image

    def read_many(self, samples: NDArray[np.int64]) -> Iterator[Read]:
        """Files, each read as it is taken."""
        for path, fields in zip(self.paths.some(samples), self._fields(samples), strict=True):
            try:
                yield Read(path, _read_file(path, self._folder), fields)
            except OSError as error:
                if error.errno not in FAULTS_OF_ONE_FILE:
                    raise ShardError(f"{self.root}: {path}: {error.strerror}") from error
                yield Read(path, UnreadableError(f"unreadable: {error.strerror}"))
            except SetAsideError as error:
                yield Read(path, error)

    def _fields(self, samples: NDArray[np.int64]) -> Sequence[Fields]:
        if self.notes is None:
            return [NO_FIELDS] * len(samples)
        return [of_json(text.encode()) for text in self.notes.some(samples)]

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
        check_bytes(os.fstat(descriptor).st_size)
        pieces = [data]
        while data := os.read(descriptor, READ_BYTES):
            pieces.append(data)
        return b"".join(pieces)
    finally:
        os.close(descriptor)
