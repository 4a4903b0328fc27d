"""Files that are whole or absent: written aside, synced, renamed."""

import fcntl
import hashlib
import math
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

ASIDE = ".part"
LOCK = ".lock"
SYNCS_AT_ONCE = 8
UNIQUE = 12  # hexadecimal digits in the name of a file aside
LONGEST_NAME = 255 - len(".") - UNIQUE - len(ASIDE)  # bytes of a file's name that leave room for the one aside


class NotWrittenError(OSError):
    """The disk is full, read-only or broken. The message is one line for the user: the file, and why."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


@contextmanager
def named(path: Path | str, what: str = "not written") -> Iterator[None]:
    """Turn an `OSError` into a `NotWrittenError` that names the file, or the URL."""
    try:
        yield
    except NotWrittenError:
        raise
    except OSError as error:
        raise NotWrittenError(error.errno, f"{what}: {error.strerror or error}", str(path)) from error


def with_nulls(value: Any) -> Any:
    """A value for JSON, which has no NaN and no infinity: None in the place of each."""
    if isinstance(value, dict):
        return {key: with_nulls(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_nulls(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if they are not there.

    Raises:
        NotWrittenError: the disk is full or read-only, or a file has that name.
    """
    with named(path, "not made"):
        path.mkdir(parents=True, exist_ok=True)


def aside_of(path: Path) -> Path:
    """A name beside a file that no other writer has, in this process or on another machine."""
    return path.with_name(f"{path.name}.{uuid4().hex[:UNIQUE]}{ASIDE}")


def remove_asides(folder: Path, name: str = "") -> None:
    """Remove what killed writers left of files whose name is this, or this and a dot and more, or of all of a folder.

    The caller holds their lock.
    """
    for aside in folder.glob(f"{escape(name) or '*'}.*{ASIDE}"):  # a name may have brackets
        aside.unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path, *, synced: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that appears under `path` only if the block ends without an exception.

    Each writer has a file of its own until then, so of several at once the last counts, whole. Unbuffered: pass large
    pieces. When `synced`, bytes and name are on the disk when this returns; else writing
    to the disk has begun, and a power cut before `sync` may leave anything under the name.

    Raises:
        NotWrittenError: the disk is full, read-only or broken, or the path cannot be written.
    """
    aside = aside_of(path)
    try:
        with named(path):
            with aside.open("wb", buffering=0) as file:
                yield file
                if synced:
                    os.fsync(file.fileno())
                else:
                    # For bytes that are still to be written this means: begin now. Waiting here would cost a quarter.
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            aside.replace(path)
    finally:
        with suppress(OSError):  # what went wrong above is the error to report
            aside.unlink()
    if synced:
        sync(path.parent)


def write_file(path: Path, content: bytes, *, synced: bool = True) -> None:
    """Write a small file whole or not at all."""
    with written_whole(path, synced=synced) as file:
        write_all(file, content)


def append(path: Path, lines: str) -> None:
    """Append whole lines to a file, which is made if need be, and put them on the disk.

    Raises:
        NotWrittenError: the disk is full or read-only, or the path cannot be written.
    """
    with named(path), path.open("ab+") as file:
        # A kill may have torn the last line: these begin on their own.
        size = file.seek(0, os.SEEK_END)
        torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write(b"\n" * torn + lines.encode())
        file.flush()
        os.fsync(file.fileno())


def write_all(file: BinaryIO, content: bytes | memoryview) -> None:
    """Write every byte: an unbuffered `write` may take fewer if the disk is nearly full."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file, which is made if it is not there; the system frees it if its holder dies.

    For moments, in which others wait. Who is in a folder for hours, and is to be named, has a lease (`cluster.lease`).
    """
    with named(path, "not locked"):
        file = _open_locked(path)
    with file:
        yield


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder, and hold it: of several processes that want it one has it at a time, and the others wait.

    Nothing of the lock is left, nor the folder if it is empty.

    Raises:
        NotWrittenError: the disk is full or read-only, or the folder cannot be made.
    """
    lock = folder / LOCK
    with named(folder):
        file = _take(folder, lock)
    with file:
        try:
            yield
        finally:
            with suppress(OSError):  # what went wrong above is the error to report
                lock.unlink()
                folder.rmdir()


def _take(folder: Path, lock: Path) -> BinaryIO:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = _open_locked(lock)
            if os.fstat(file.fileno()).st_ino == lock.stat().st_ino:
                return file
            file.close()
        except (FileNotFoundError, FileExistsError):
            # The holder before has removed the folder just now, or the lock; else a file is where a folder should be.
            if any(_is_in_the_way(place) for place in (folder, *folder.parents)):
                raise


def _is_in_the_way(place: Path) -> bool:
    """Whether something is there that is no folder: one look, since a folder may be removed between two."""
    try:
        return not stat.S_ISDIR(place.stat().st_mode)
    except OSError:
        return place.is_symlink()  # to nothing


def _open_locked(path: Path) -> BinaryIO:
    """A file that is locked until it is closed."""
    file = path.open("ab")
    fcntl.lockf(file, fcntl.LOCK_EX)
    return file


def sync_all(paths: Iterable[Path]) -> None:
    """As `sync`, for many files: those that ask at the same time share one commit of the file system's journal."""
    with ThreadPoolExecutor(SYNCS_AT_ONCE) as pool:
        list(pool.map(sync, paths))


def sync(path: Path) -> None:
    """Put a file's bytes, or a folder's names, on the disk: a rename outlives a power cut only after this.

    Raises:
        NotWrittenError: the disk is full after all, or broken.
    """
    with named(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; the empty string if it is not there."""
    if not path.is_file():
        return ""
    digest = hashlib.sha256()
    with named(path, "not read"), path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
