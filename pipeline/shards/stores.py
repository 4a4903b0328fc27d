"""Object stores and other machines, by any URL that fsspec knows: s3://, gs://, sftp://, https:// ..."""

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import fsspec

from pipeline.files import aside_of, sync
from pipeline.shards.manifest import ShardError


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
    except (ValueError, ImportError) as error:
        raise ShardError(f"{url}: {error}") from error
    return store, root.rstrip("/")


def fetch(store: Any, there: str, here: Path, check: Callable[[Path], object]) -> None:
    """Copy one file from a store, over what may be here; `here` is whole or as it was.

    `check` is called with the copy before it gets its name.

    Raises:
        ShardError: it is not there, the store is gone, or the disk is full; and as `check` does.
    """
    aside = aside_of(here)
    try:
        store.get_file(there, str(aside))
        check(aside)
        sync(aside)
        aside.replace(here)
    except FileNotFoundError as error:
        raise ShardError(f"{there}: not found") from error
    except OSError as error:
        raise ShardError(f"{here}: not copied: {error.strerror or error}") from error
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
    """
    if here.is_file():
        return
    fetch(store, there, here, partial(_check_size, store, there))


def send(here: Path, store: Any, there: str) -> None:
    """Copy one file to a store, over what may be there.

    Raises:
        OSError: the store refuses, or keeps another number of bytes.
    """
    store.put_file(str(here), there)
    store.invalidate_cache()
    wanted, got = here.stat().st_size, store.size(there)
    if got != wanted:
        raise OSError(f"{there}: got {got} bytes, wanted {wanted}")
