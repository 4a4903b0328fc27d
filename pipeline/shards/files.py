"""Files that are whole or absent: written aside, synced, renamed."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.shards.errors import ShardError

ASIDE = ".part"


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that appears under `path` only when the block ends without an exception.

    Unbuffered: pass large pieces. The bytes and the name are on the disk when this returns.

    Raises:
        ShardError: the disk is full, or the file cannot be written for another reason of the system's.
    """
    aside = path.with_name(path.name + ASIDE)
    try:
        with aside.open("wb", buffering=0) as file:
            yield file
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise ShardError(f"{path}: not written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    with written_whole(path) as file:
        write_all(file, content)


def write_all(file: BinaryIO, content: bytes) -> None:
    """Write every byte: an unbuffered `write` may take fewer when the disk is nearly full."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file, which is made if need be; the system frees it when its holder dies."""
    try:
        with path.open("a") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise ShardError(f"{path}: not locked: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk: a rename outlives a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
