"""A folder of identity folders: `root/<identity>/<image>`, one person a folder."""

import errno
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.errors import SetAsideError, ShardError
from pipeline.shards.sources import SetAside

SUFFIXES = (".jpg", ".jpeg", ".png")
READ_BYTES = 1 << 16
# Faults of one file. Any other error of the system (a mount gone, too many open files) is everyone's fault.
FAULTS_OF_ONE_FILE = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.EIO}


@dataclass(frozen=True)
class FolderSource:
    """Images of identity folders, both sorted by the bytes of their names; hidden names are skipped.

    File names lie in one string, since ten million Python strings would take a gigabyte.
    """

    root: Path
    identities: Sequence[str]
    labels: NDArray[np.uint32]
    set_aside: Sequence[SetAside]
    names: str
    name_starts: NDArray[np.int64]
    kind: str = "folder"

    @classmethod
    def scan(cls, root: Path) -> "FolderSource":
        """List `root`.

        An identity folder without images is set aside whole and gets no label.

        Raises:
            ShardError: no such folder, no identity folders, no image in any, or a name that is no UTF-8 line.
        """
        if not root.is_dir():
            raise ShardError(f"{root}: got no folder, wanted a folder of identity folders")
        folders, set_aside = _entries(root, want_folders=True)
        if not folders:
            raise ShardError(f"{root}: got no identity folders, wanted one folder of images a person")
        identities: list[str] = []
        counts: list[int] = []
        lengths: list[NDArray[np.int64]] = []
        names: list[str] = []
        for folder in folders:
            images, others = _images(root, folder)
            set_aside += others
            if images:
                identities.append(_printable(root, folder))
                counts.append(len(images))
                lengths.append(np.fromiter(map(len, images), np.int64, len(images)))
                names.append("/".join([*images, ""]))
        if not identities:
            raise ShardError(f"{root}: got {len(folders)} identity folders without images, wanted .jpg or .png")
        # Each name is followed by a slash, the one character (with NUL) that no file name holds.
        starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths) + 1)])
        labels = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
        return cls(root, identities, labels, set_aside, "".join(names), starts)

    def digest(self) -> str:
        """SHA-256 of identities, labels and file names."""
        digest = hashlib.sha256("\n".join(self.identities).encode())
        digest.update(b"\0")
        digest.update(self.labels.astype("<u4", copy=False).tobytes())
        digest.update(os.fsencode(self.names))
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """`identity/file name`."""
        name = self.names[self.name_starts[sample] : self.name_starts[sample + 1] - 1]
        return f"{self.identities[self.labels[sample]]}/{name}"

    def read(self, sample: int) -> bytes:
        """The file's bytes; a missing or forbidden file is set aside, a vanished disk ends the run."""
        path = f"{self.root}/{self.key(sample)}"
        try:
            return _read_file(path)
        except OSError as error:
            if error.errno in FAULTS_OF_ONE_FILE:
                raise SetAsideError(f"unreadable: {error.strerror}") from error
            raise ShardError(f"{path}: {error.strerror}") from error


def _images(root: Path, folder: str) -> tuple[list[str], list[SetAside]]:
    """Sorted image names of one identity folder, and what else lies in it."""
    files, others = _entries(root / folder, want_folders=False)
    images = [file for file in files if file.lower().endswith(SUFFIXES)]
    if len(images) < len(files):
        strange = (file for file in files if not file.lower().endswith(SUFFIXES))
        others += (SetAside(file, "not named .jpg, .jpeg or .png") for file in strange)
    others = [SetAside(f"{folder}/{path}", reason) for path, reason in others]
    if not images:
        others.append(SetAside(folder, "identity without images"))
    return images, others


def _entries(folder: Path, *, want_folders: bool) -> tuple[list[str], list[SetAside]]:
    """Sorted names of the folders (or files) in a folder, and its entries of the other kind."""
    wanted: list[str] = []
    others: list[SetAside] = []
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise ShardError(f"{folder}: not listed: {error.strerror}") from error
    for entry in entries:
        if entry.is_dir() if want_folders else entry.is_file():
            wanted.append(entry.name)
        else:
            reason = "not in an identity folder" if want_folders else "not a file"
            others.append(SetAside(entry.name, reason))
    return sorted(wanted), sorted(others)


def _printable(root: Path, folder: str) -> str:
    """An identity's name, which must fit a line of `identities.txt`."""
    if not folder.isprintable():
        raise ShardError(f"{root}: identity folder {folder!r}: wanted a printable UTF-8 name; rename it")
    return folder


def _read_file(path: str) -> bytes:
    """A file's bytes. `os.read` takes half the time of `open().read()`, and faces fit one call."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.read(descriptor, READ_BYTES)
        if len(data) < READ_BYTES:
            return data
        pieces = [data]
        while pieces[-1]:
            pieces.append(os.read(descriptor, READ_BYTES))
        return b"".join(pieces)
    finally:
        os.close(descriptor)
