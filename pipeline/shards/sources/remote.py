"""Identity folders in an object store or on another machine, by any URL that fsspec knows.

Each image is one request, so this is the slow way; a set that is needed twice is better copied.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from pipeline.shards.errors import SetAsideError, ShardError
from pipeline.shards.sources import SetAside
from pipeline.shards.sources.folder import SUFFIXES


@dataclass(frozen=True)
class RemoteSource:
    """Images at `url/<identity>/<image>`, sorted by path."""

    url: str
    identities: Sequence[str]
    labels: NDArray[np.uint32]
    set_aside: Sequence[SetAside]
    paths: Sequence[str]
    kind: str = "folder"

    def digest(self) -> str:
        """SHA-256 of identities, labels and paths."""
        return hashlib.sha256("\n".join([*self.identities, "", *self.paths]).encode()).hexdigest()

    def key(self, sample: int) -> str:
        """`identity/file name`."""
        return self.paths[sample]

    def read(self, sample: int) -> bytes:
        """The object's bytes; one that is missing or forbidden is set aside, a store that is gone ends the run."""
        store, root = _store(self.url, os.getpid())
        try:
            data: bytes = store.cat_file(f"{root}/{self.paths[sample]}")
        except (FileNotFoundError, PermissionError) as error:
            raise SetAsideError(f"unreadable: {type(error).__name__}") from error
        except OSError as error:
            raise ShardError(f"{self.url}/{self.paths[sample]}: {error}") from error
        return data


def list_remote(url: str) -> RemoteSource:
    """List the images of identity folders at a URL.

    Raises:
        ShardError: the URL is of no known kind, cannot be listed, or has no images in identity folders.
    """
    store, root = _store(url, os.getpid())
    try:
        found = sorted(path[len(root) + 1 :] for path in store.find(root))
    except OSError as error:
        raise ShardError(f"{url}: not listed: {error}") from error
    paths, set_aside = [], []
    for path in found:
        identity, _, image = path.partition("/")
        if identity.isprintable() and image and "/" not in image and image.lower().endswith(SUFFIXES):
            paths.append(path)
        else:
            set_aside.append(SetAside(path, "wanted identity/image, the image named .jpg, .jpeg or .png"))
    if not paths:
        raise ShardError(f"{url}: got {len(found)} objects, wanted identity/image.jpg")
    counts = [(identity, len(list(group))) for identity, group in groupby(paths, lambda path: path.partition("/")[0])]
    labels = np.repeat(np.arange(len(counts), dtype=np.uint32), [count for _, count in counts])
    return RemoteSource(url, [identity for identity, _ in counts], labels, set_aside, paths)


@cache
def _store(url: str, _process: int) -> tuple[Any, str]:
    """File system and path of a URL, anew in each process: their connections do not survive a fork."""
    try:
        store, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ShardError(f"{url}: {error}") from error
    return store, root.rstrip("/")
