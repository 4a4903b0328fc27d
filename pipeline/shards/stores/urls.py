"""Object stores and other machines, by any URL that fsspec knows: s3://, gs://, sftp://, https:// ..."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec

from pipeline.files import NotWrittenError, aside_of, named, sync
from pipeline.shards.format.manifest import PROGRESS, ShardError

FILE_SYSTEMS = {"file", "local", "sftp", "ssh"}
SILENCE = 60  # seconds in which a web server has to answer or go on
# HTTP's answers that the system has words for.
OF_STATUS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT}
# What stores call the time of an object's last change; of a file, `created` is when its name or mode last changed.
TIMES = ("mtime", "created", "LastModified", "last_modified", "updated")


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL and not a path."""
    return "://" in str(place)


def open_store(url: str) -> tuple[Any, str]:
    """File system of a URL and the path in it, without a slash at its end.

    Raises:
        ShardError: of no known kind, or what reads it is not installed.
    """
    return _opened(url, os.getpid())


@cache
def _opened(url: str, _process: int) -> tuple[Any, str]:
    """Anew in each process: connections do not survive a fork."""
    try:
        store, root = fsspec.core.url_to_fs(url)
    except Exception as error:  # also what a library raises without credentials
        raise ShardError(f"{url}: {error}") from error
    if is_web(store):
        # Its library gives each transfer five minutes, in which no large file arrives. It may take as long as it likes,
        # but not be silent for longer than this.
        limit = import_module("aiohttp").ClientTimeout(sock_connect=SILENCE, sock_read=SILENCE)
        store.client_kwargs.setdefault("timeout", limit)
    return store, root.rstrip("/")


@contextmanager
def named_place(place: str, what: str = "not written") -> Iterator[None]:
    """Turn an error of a store into a `NotWrittenError` that names the place."""
    with named(place, what), _system_errors():
        yield


@contextmanager
def _system_errors() -> Iterator[None]:
    """Turn what the library of a store raises into an `OSError`."""
    try:
        yield
    except ShardError:
        raise
    except Exception as error:
        if (said := system_error(error)) is error:
            raise
        raise said from error


def system_error(error: Exception) -> OSError:
    """The error of a store's library as the system would say it.

    Those of aiohttp and botocore are no `OSError`, such as a connection that ended, or that there are no credentials.
    """
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):  # one class from Python 3.11 on; its message is empty
        return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    if isinstance(error, OSError):
        return error
    number = OF_STATUS.get(getattr(error, "status", 0), errno.EIO)
    return OSError(number, " ".join(str(error).split()) or type(error).__name__)


def is_web(store: Any) -> bool:
    """Whether a store is reached by HTTP, whose paths are percent-encoded."""
    return "http" in store.protocol


def changed_in(info: dict[str, Any]) -> float:
    """When an object was last changed, in seconds since 1970, by what its store says of it; 0 if it does not say."""
    return max(_seconds(info.get(name)) for name in TIMES)


def _seconds(value: object) -> float:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            return 0.0
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, (int, float)) else 0.0


def fetch(store: Any, there: str, here: Path, check: Callable[[Path], object]) -> None:
    """Copy one file from a store, over what may be here; `here` is whole or as it was.

    `check` is called with the copy before it gets its name.

    Raises:
        ShardError: it is not there; and as `check` does.
        NotWrittenError: the store is gone, or the disk is full.
    """
    aside = aside_of(here)
    try:
        with named(here, "not copied"), _system_errors():
            store.get_file(there, str(aside))
            check(aside)
            sync(aside)
            aside.replace(here)
    except NotWrittenError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ShardError(f"{there}: not found") from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def _check_size(store: Any, there: str, copy: Path) -> None:
    wanted, got = store.size(there), copy.stat().st_size
    if wanted not in {None, got}:
        raise ShardError(f"{there}: got {got} bytes, wanted {wanted}")


def fetch_whole(store: Any, there: str, here: Path) -> None:
    """Copy one file from a store unless it is here; `here` is whole or absent.

    Raises:
        ShardError: as `fetch`, or it arrives with another size.
        NotWrittenError: as `fetch`.
    """
    if here.is_file():
        return
    fetch(store, there, here, partial(_check_size, store, there))


def send(here: Path, store: Any, there: str) -> None:
    """Copy one file to a store, over what may be there; it is never seen half-written.

    Raises:
        OSError: the store refuses, or keeps another number of bytes.
    """
    folder, _, name = there.rpartition("/")
    aside = f"{folder}/{PROGRESS}/{uuid4().hex}/{name}" if _is_file_system(store) else there
    store.makedirs(aside.rpartition("/")[0], exist_ok=True)
    store.put_file(str(here), aside)
    store.invalidate_cache()
    wanted, got = here.stat().st_size, store.size(aside)
    if got != wanted:
        raise OSError(errno.EIO, f"got {got} bytes, wanted {wanted}", there)
    if aside != there:
        store.mv(aside, there)


def remove_progress(store: Any, folder: str) -> None:
    """Remove what was on the way in a folder of a store, as far as that is possible."""
    path = f"{folder}/{PROGRESS}"
    for _ in range(3):  # another process may do the same now, and each then misses what the other has removed
        with suppress(OSError), _system_errors():
            store.invalidate_cache()
            if store.exists(path):
                store.rm(path, recursive=True)


def _is_file_system(store: Any) -> bool:
    """Whether a file can be seen while it is written, and renamed at no cost; an object appears whole."""
    protocols = {store.protocol} if isinstance(store.protocol, str) else {*store.protocol}
    return not protocols.isdisjoint(FILE_SYSTEMS)
