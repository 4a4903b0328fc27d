"""Whole sets to and from object stores and other machines, by any URL that fsspec knows (s3://, gs://, sftp:// ...).

Training maps local files, so a set is copied first. The manifest is copied last: a folder that has one is complete.
Files that are there already are not copied again.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.files import file_sha256, held, remove_asides
from pipeline.shards.format.index import FILE_NAME as INDEX
from pipeline.shards.format.manifest import FILE_NAME as MANIFEST
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.format.names import IDENTITIES_NAME
from pipeline.shards.format.rejected import REJECTED_NAME
from pipeline.shards.stores.urls import fetch, named_place, open_store, remove_progress, send

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

    def send_one(name: str) -> None:
        _compare(folder / name, digests.get(name))
        there = f"{root}/{name}"
        if not store.exists(there) or store.size(there) != (folder / name).stat().st_size:
            send(folder / name, store, there)

    with named_place(url, "not copied"):
        try:
            is_complete = _is_at(store, root, url, manifest)
            _transfer(send_one, manifest, progress)
            if not is_complete:
                send(folder / MANIFEST, store, f"{root}/{MANIFEST}")
        except FileNotFoundError:
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

    def is_here(name: str) -> bool:
        path = folder / name
        return path.is_file() and digests.get(name) in {None, file_sha256(path)}

    def receive(name: str) -> None:
        if name in missing and not is_here(name):
            path = folder / name
            fetch(store, f"{root}/{name}", path, lambda copy: _compare(copy, digests.get(name), path))

    with ThreadPoolExecutor(THREADS) as pool:
        missing = {
            name for name, here in zip(_names(manifest), pool.map(is_here, _names(manifest)), strict=True) if not here
        }
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


def _names(manifest: Manifest) -> list[str]:
    """Every file of a set but the manifest."""
    names = []
    for tar in manifest.tars:
        names += [tar.name, tar.name.removesuffix(".tar") + ".idx"]
    return [*names, IDENTITIES_NAME, REJECTED_NAME, INDEX]


def _transfer(move: Callable[[str], None], manifest: Manifest, progress: Callable[[int], object]) -> None:
    """Move every file but the manifest, several at a time."""
    samples = {tar.name: tar.samples for tar in manifest.tars}
    with ThreadPoolExecutor(THREADS) as pool:
        for name, _ in zip(_names(manifest), pool.map(move, _names(manifest)), strict=True):
            progress(samples.get(name, 0))


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
