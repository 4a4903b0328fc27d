"""Whole sets to and from object stores and other machines, by any URL that fsspec knows (s3://, gs://, sftp:// ...).

Training maps local files, so a set is copied first. The manifest is copied last: a folder that has one is complete.
Files that are there already are not copied again.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.files import file_sha256, held, remove_asides
from pipeline.shards.format.index import FILE_NAME as INDEX
from pipeline.shards.format.manifest import FILE_NAME as MANIFEST
from pipeline.shards.format.manifest import PROGRESS, Manifest, ShardError
from pipeline.shards.format.names import IDENTITIES_NAME
from pipeline.shards.format.rejected import REJECTED_NAME
from pipeline.shards.stores.urls import fetch, named_place, open_store, remove_progress, send

Group = tuple[str, ...]  # names of files that are moved one after another

THREADS = 8  # transfers at a time: stores answer slowly but many at once


def push(folder: Path, url: str, *, progress: Callable[[int], object] = lambda _samples: None) -> Manifest:
    """Copy the set in `folder` to `url`, after comparing each file with the manifest.

    Args:
        folder: a set that holds its own tars.
        url: of the folder for it; credentials are taken from the places that the store's own tools use.
        progress: called with the number of samples of each tar.

    Raises:
        ShardError: a file is not what the manifest says, tars lie in another folder, or another set is at `url`.
        NotWrittenError: the store refuses.
    """
    manifest = Manifest.load(folder)
    _refuse_foreign(manifest, folder)
    digests = _digests(manifest)
    store, root = open_store(url)
    # A file that a stopped copy of another set has left may have the size of this set's: a note says whose each is.
    notes, mine = f"{root}/{PROGRESS}/sent", manifest.digest.encode()

    def has_arrived(name: str) -> bool:
        try:
            is_mine = is_complete or store.cat_file(f"{notes}/{name}") == mine
            return is_mine and store.size(f"{root}/{name}") == (folder / name).stat().st_size
        except FileNotFoundError:
            return False

    def send_group(names: Group) -> None:
        for name in names:
            _compare(folder / name, digests.get(name))
            if not has_arrived(name):
                send(folder / name, store, f"{root}/{name}")
                store.makedirs(notes, exist_ok=True)
                store.pipe_file(f"{notes}/{name}", mine)

    with named_place(url, "not copied"):
        try:
            is_complete = _is_at(store, root, url, manifest)
            _transfer(send_group, manifest, progress)
            if not is_complete:
                send(folder / MANIFEST, store, f"{root}/{MANIFEST}")
        except (FileNotFoundError, FileExistsError):  # the second of a folder that goes while it is made
            # Another process may have been last at the same time, and have removed what this one had on the way.
            if not _is_at(store, root, url, manifest):
                raise
        remove_progress(store, root)
    return manifest


def pull(url: str, folder: Path, *, progress: Callable[[int], object] = lambda _samples: None) -> Manifest:
    """Copy the set at `url` to `folder`, and compare each file with the manifest.

    Args:
        url: of a folder with a set.
        folder: for the copy; files of an earlier, stopped copy are kept.
        progress: called with the number of samples of each tar.

    Raises:
        ShardError: there is no set at `url`, a file arrives damaged, or another set is in `folder`.
        NotWrittenError: the store is gone, or the disk is full or read-only.
    """
    store, root = open_store(url)
    with named_place(f"{url}/{MANIFEST}", "not read"):
        manifest = _manifest_at(store, root, url)
    if manifest is None:
        raise ShardError(f"{url}/{MANIFEST}: not found, wanted a finished set")
    _refuse_foreign(manifest, url)
    digests = _digests(manifest)

    def is_here(names: Group) -> bool:
        paths = {name: folder / name for name in names}
        return all(path.is_file() and digests.get(name) in {None, file_sha256(path)} for name, path in paths.items())

    def receive(names: Group) -> None:
        if names in missing and not is_here(names):
            for name, path in ((name, folder / name) for name in names):
                fetch(store, f"{root}/{name}", path, partial(_compare, wanted=digests.get(name), shown=path))

    groups = _groups(manifest)
    with ThreadPoolExecutor(THREADS) as pool:
        missing = {group for group, here in zip(groups, pool.map(is_here, groups), strict=True) if not here}
    if not missing and _is_in(folder, manifest):
        return manifest
    with held(folder):
        _is_in(folder, manifest)
        _transfer(receive, manifest, progress)
        remove_asides(folder)
        manifest.save(folder)
    return manifest


def _manifest_at(store: Any, root: str, url: str) -> Manifest | None:
    """The manifest in a folder of a store; None if there is none."""
    try:
        return Manifest.parse(store.cat_file(f"{root}/{MANIFEST}"), f"{url}/{MANIFEST}")
    except FileNotFoundError:
        return None


def _is_at(store: Any, root: str, url: str, manifest: Manifest) -> bool:
    """Whether the set is complete in a folder of a store. Files of its size there would be taken for its own.

    Raises:
        ShardError: another set is there.
    """
    there = _manifest_at(store, root, url)
    if there not in {None, manifest}:
        raise ShardError(f"{url}: holds another set; choose another folder or remove it")
    return there is not None


def _is_in(folder: Path, manifest: Manifest) -> bool:
    """Whether the set is complete in a folder.

    Raises:
        ShardError: another set is there.
    """
    there = Manifest.load(folder) if (folder / MANIFEST).is_file() else None
    if there not in {None, manifest}:
        raise ShardError(f"{folder}: holds another set; choose another folder or remove it")
    return there is not None


def _refuse_foreign(manifest: Manifest, where: Path | str) -> None:
    """Make sure that a set holds its own tars."""
    for tar in manifest.tars:
        if "/" in tar.name:
            raise ShardError(f"{where}: its tars lie in other folders ({tar.name}): make tars of its own with `copy`")


def _groups(manifest: Manifest) -> list[Group]:
    """Every file of a set but the manifest.

    The manifest has no digest of some files. Each of them is moved before one whose digest it has, so that where that
    one is, this one is of the same set.
    """
    tars = [(tar.name.removesuffix(".tar") + ".idx", tar.name) for tar in manifest.tars]
    return [*tars, (IDENTITIES_NAME,), (REJECTED_NAME, INDEX)]


def _transfer(move: Callable[[Group], None], manifest: Manifest, progress: Callable[[int], object]) -> None:
    """Move every file but the manifest, several at a time."""
    groups, samples = _groups(manifest), {tar.name: tar.samples for tar in manifest.tars}
    with ThreadPoolExecutor(THREADS) as pool:
        for group, _ in zip(groups, pool.map(move, groups), strict=True):
            progress(samples.get(group[-1], 0))


def _digests(manifest: Manifest) -> dict[str, str]:
    """File name to SHA-256 of the files whose digest the manifest holds."""
    own = {INDEX: manifest.index_sha256, IDENTITIES_NAME: manifest.identities_sha256}
    return own | {tar.name: tar.sha256 for tar in manifest.tars}


def _compare(path: Path, wanted: str | None, shown: Path | None = None) -> None:
    """Compare a file with a digest, if there is one; errors name `shown` if it is given."""
    if wanted and (got := file_sha256(path)) != wanted:
        raise ShardError(f"{shown or path}: sha256: got {got or 'no file'}, wanted {wanted}")
    if not path.is_file():
        raise ShardError(f"{shown or path}: not found, wanted it beside the manifest")
