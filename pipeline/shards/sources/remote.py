"""Faces in an object store or on another machine, by any URL that fsspec knows.

Images that are objects of their own are read from the store, a batch at a time. Large files (RecordIO, tars,
Parquet) are copied first: a shuffled set reads them in random places, and a request for each of 42 million would take
weeks.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from pipeline.files import locked, make_folder, write_file
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.names import UNUSABLE, usable_name, warn_respelled
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.images import NO_SUFFIX, SUFFIXES, UnreadableError
from pipeline.shards.sources import Read
from pipeline.shards.sources.columns import HUGGING_FACE, Columns
from pipeline.shards.sources.files import FileSource, Texts
from pipeline.shards.sources.folder import lost_by
from pipeline.shards.sources.list_file import parse_list
from pipeline.shards.sources.splits import matches
from pipeline.shards.stores.urls import changed_in, fetch_whole, is_web, named_place, open_store, system_error

ORIGIN = ".url"  # in a folder of copies: what they are copies of

# Faults of one object. Any other may pass, as that of a store that is busy: the object is asked for again after each of
# these pauses, in seconds. The libraries of S3 and GCS do that themselves, that of HTTP does not.
FAULTS_OF_ONE = (FileNotFoundError, PermissionError)
PAUSES = (1, 4, 16)

Patterns = tuple[tuple[str, ...], tuple[str, ...]]  # of names that show a kind of source, and of others that it needs


@dataclass(frozen=True)
class RemoteSource(FileSource):
    """As `FileSource`, `root` being a URL."""

    def modified(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """[samples] when each object was last changed; 0 for a list, whose store is not listed."""
        if self.kind == "list":
            return np.zeros(len(samples))
        return np.array([self._changes.get(key, 0.0) for key in self.paths.some(samples)])

    @cached_property
    def _changes(self) -> dict[str, float]:
        """Key of every object to when it was last changed, by one listing."""
        store, root = open_store(self.root)
        with named_place(self.root, "not listed"):
            found = store.find(root, detail=True)
        name_of = unquote if is_web(store) else str
        return {name_of(path[len(root) + 1 :]): changed_in(info) for path, info in found.items()}

    def read_many(self, samples: NDArray[np.int64]) -> Iterator[Read]:
        """Objects, which a store that can is asked for at the same time.

        One that is missing or forbidden is set aside; a store that is gone for longer than `PAUSES` ends the run.
        """
        store, root = open_store(self.root)
        keys = self.paths.some(samples)
        paths = [f"{root}/{quote(key) if is_web(store) else key}" for key in keys]
        for key, data, fields in zip(keys, _objects(store, paths), self._fields(samples), strict=True):
            if isinstance(data, bytes):
                yield Read(key, data, fields)
            elif isinstance(data, FAULTS_OF_ONE):
                yield Read(key, UnreadableError(f"unreadable: {type(data).__name__}"))
            else:
                with named_place(f"{self.root}/{key}", "not read"):
                    raise data


def _objects(store: Any, paths: list[str]) -> list[bytes | OSError]:
    """Objects, or why each cannot be read; those that may yet arrive are asked for again."""
    found = _asked(store, paths)
    for pause in PAUSES:
        late = [place for place, one in enumerate(found) if not isinstance(one, (bytes, *FAULTS_OF_ONE))]
        if not late:
            break
        time.sleep(pause)
        for place, one in zip(late, _asked(store, [paths[place] for place in late]), strict=True):
            found[place] = one
    return found


def _asked(store: Any, paths: list[str]) -> list[bytes | OSError]:
    pieces = store.cat_ranges(paths, None, None)
    return [piece if isinstance(piece, bytes) else system_error(piece) for piece in pieces]


def copy_large(url: str, copies: Path | None, kinds: Sequence[Patterns], pattern: str = "*") -> Path | None:
    """Copy the large files at a URL, and return their folder here (or the file); None if there are none.

    Files that are in `copies` already are not copied again. Several machines may ask at once.

    Args:
        url: of a folder or of one file.
        copies: folder for the copies.
        kinds: patterns of file names by kind of source; all files of the first kind that the URL holds are copied.
        pattern: of those wanted among them.

    Raises:
        ShardError: `copies` holds those of another URL, a file arrives cut, or the disk has not the room.
        NotWrittenError: the store cannot be listed or read, or the disk is full after all.
    """
    store, root = open_store(url)
    folder, _, name = root.rpartition("/")
    if names := _large([name], kinds, "*"):
        root = folder
    else:
        with named_place(url, "not listed"):
            names = _large(_listed(store, root, kinds), kinds, pattern)
    if not names:
        return None
    if copies is None:
        raise ShardError(f"{url}: got {names[0]}, wanted a folder to copy it to")
    make_folder(copies)
    with locked(copies / ".lock"):
        _refuse_other(copies, store.unstrip_protocol(root))
        missing = [name for name in names if not (copies / name).is_file()]
        with named_place(url, "not listed"):
            wanted = sum(store.size(f"{root}/{name}") or 0 for name in missing)
        _require_room(copies, wanted)
        for name in missing:
            make_folder((copies / name).parent)
            fetch_whole(store, f"{root}/{name}", copies / name)
    return copies


def _refuse_other(copies: Path, place: str) -> None:
    """Say whose copies a folder holds: files of one name would be taken for those of another place."""
    origin = copies / ORIGIN
    if not origin.is_file():
        write_file(origin, place.encode())
    elif (there := origin.read_bytes().decode()) != place:
        raise ShardError(
            f"{copies}: holds copies of {there}, wanted those of {place}; remove it, or name another output"
        )


def _require_room(folder: Path, wanted: int) -> None:
    """Refuse a copy that cannot fit, before hours of it. A store that does not know its sizes counts as small."""
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise ShardError(f"{folder}: got {free / 1e9:,.1f} GB free, wanted {wanted / 1e9:,.1f} GB for the copy")


def _listed(store: Any, root: str, kinds: Sequence[Patterns]) -> list[str]:
    """Names in a folder, and in those folders inside it that a pattern names."""
    names = _names_in(store, root)
    patterns = chain.from_iterable(chain(*kinds))
    inside = {pattern.partition("/")[0] for pattern in patterns if "/" in pattern}
    for folder in sorted(inside.intersection(names)):
        names += [f"{folder}/{name}" for name in _names_in(store, f"{root}/{folder}")]
    return names


def _names_in(store: Any, folder: str) -> list[str]:
    return [path.rstrip("/").rpartition("/")[2] for path in store.ls(folder, detail=False)]


def _large(names: list[str], kinds: Sequence[Patterns], pattern: str) -> list[str]:
    """Those of a folder's files that are to be copied: of the first kind of which there are any."""
    for marks, others in kinds:
        found = [name for name in names if _matches_any(name, marks) and matches(name, pattern)]
        if found:
            return sorted([*found, *(name for name in names if _matches_any(name, others))])
    return []


def _matches_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch_path(name, pattern) for pattern in patterns)


def fnmatch_path(name: str, pattern: str) -> bool:
    """Whether a relative path matches a pattern with as many folders."""
    return name.count("/") == pattern.count("/") and PurePosixPath(name).match(pattern)


def list_remote(url: str, columns: Columns = HUGGING_FACE, pattern: str = "*") -> RemoteSource:
    """List the images of identity folders of this pattern at a URL, or those of a list file there.

    Raises:
        ShardError: the URL is of no known kind, or has no images in identity folders.
        NotWrittenError: the store cannot be listed.
    """
    store, root = open_store(url)
    with named_place(url, "not listed"):
        if not store.isdir(root):
            with store.open(root, "r", encoding="utf-8", newline="\n") as lines:
                return RemoteSource("list", url.rpartition("/")[0], *parse_list(lines, url, columns))
        found = [path[len(root) + 1 :] for path in store.find(root)]
    found = sorted(map(unquote, found) if is_web(store) else found)
    return _identity_folders(url, [path for path in found if matches(path.partition("/")[0], pattern)])


def _identity_folders(url: str, found: list[str]) -> RemoteSource:
    """Images at `url/<identity>/<image>`, in the order of `scan_folder`."""
    paths, set_aside = [], []
    for path in found:
        identity, _, image = path.partition("/")
        if not image or "/" in image:
            set_aside.append(SetAside(path, "wanted identity/image", lost_by(path)))
        elif not image.lower().endswith(SUFFIXES):
            set_aside.append(SetAside(path, NO_SUFFIX, lost_by(image)))
        elif usable_name(identity) is None:
            set_aside.append(SetAside(path, f"identity {identity!r}: {UNUSABLE}"))
        else:
            paths.append((identity, image))
    if not paths:
        raise ShardError(f"{url}: got {len(found)} objects, wanted identity/image.jpg")
    # Sorted as pairs: as paths, "ann smith/1.jpg" would stand before "ann/1.jpg".
    paths.sort()
    folders, of_images = np.unique([folder for folder, _ in paths], return_inverse=True)
    names = [usable_name(folder) or "" for folder in folders.tolist()]
    warn_respelled(url, sum(map(str.__ne__, names, folders.tolist())))
    identities = list(dict.fromkeys(names))
    label_of = {name: label for label, name in enumerate(identities)}
    labels = np.array([label_of[name] for name in names], np.uint32)[of_images]
    keys = list(map("/".join, paths))
    ends = np.cumsum(list(map(len, keys)), dtype=np.int64)
    return RemoteSource("folder", url, identities, labels, set_aside, Texts("".join(keys), ends))
