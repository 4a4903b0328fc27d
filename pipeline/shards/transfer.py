"""Whole sets to and from object stores and other machines, by any URL that fsspec knows (s3://, gs://, sftp:// ...).

Training maps local files, so a set is copied first. The manifest is copied last: a folder that has one is complete.
Files that are there already are not copied again.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.files import make_folder
from pipeline.shards.build import REJECTED_NAME
from pipeline.shards.index import FILE_NAME as INDEX
from pipeline.shards.manifest import FILE_NAME as MANIFEST
from pipeline.shards.manifest import Manifest, ShardError
from pipeline.shards.names import IDENTITIES_NAME
from pipeline.shards.one_tar import file_sha256
from pipeline.shards.stores import fetch, fetch_whole, open_store, send

THREADS = 8  # transfers at a time: stores answer slowly but many at once


def push(folder: Path, url: str, *, progress: Callable[[int], object] = lambda _samples: None) -> Manifest:
    """Copy the set in `folder` to `url`, after comparing each file with the manifest.

    Args:
        folder: a set that holds its own tars.
        url: of the folder for it; credentials are taken from the places that the store's own tools use.
        progress: called with the number of samples of each tar.

    Raises:
        ShardError: a file is not what the manifest says, tars lie in another folder, or the store refuses.
    """
    manifest = Manifest.load(folder)
    store, root = open_store(url)

    def send_one(name: str) -> None:
        _compare(folder / name, manifest, name)
        there = f"{root}/{name}"
        if not store.exists(there) or store.size(there) != (folder / name).stat().st_size:
            send(folder / name, store, there)

    try:
        # Files of its size are taken for its own, so the set of another manifest must not be there.
        if (
            store.exists(f"{root}/{MANIFEST}")
            and store.cat_file(f"{root}/{MANIFEST}") != (folder / MANIFEST).read_bytes()
        ):
            raise ShardError(f"{url}: holds another set; choose another folder or remove it")
        store.makedirs(root, exist_ok=True)
        _transfer(send_one, manifest, url, progress)
        store.put_file(str(folder / MANIFEST), f"{root}/{MANIFEST}")
    except OSError as error:
        raise ShardError(f"{url}: not copied: {error.strerror or error}") from error
    return manifest


def pull(url: str, folder: Path, *, progress: Callable[[int], object] = lambda _samples: None) -> Manifest:
    """Copy the set at `url` to `folder`, and compare each file with the manifest.

    Args:
        url: of a folder with a set.
        folder: for the copy; files of an earlier, stopped copy are kept.
        progress: called with the number of samples of each tar.

    Raises:
        ShardError: there is no set at `url`, a file arrives damaged, or the disk is full.
    """
    store, root = open_store(url)
    if not store.exists(f"{root}/{MANIFEST}"):
        raise ShardError(f"{url}/{MANIFEST}: not found, wanted a finished set")
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        fetch_whole(store, f"{root}/{MANIFEST}", Path(aside) / MANIFEST)
        manifest = Manifest.load(Path(aside))

    def receive(name: str) -> None:
        path = folder / name
        if _digests(manifest).get(name) not in {None, file_sha256(path)} or not path.is_file():
            fetch(store, f"{root}/{name}", path, lambda copy: _compare(copy, manifest, name, path))

    _transfer(receive, manifest, url, progress)
    manifest.save(folder)
    return manifest


def _transfer(move: Callable[[str], None], manifest: Manifest, url: str, progress: Callable[[int], object]) -> None:
    """Move every file but the manifest, several at a time."""
    outside = [tar.name for tar in manifest.tars if "/" in tar.name]
    if outside:
        raise ShardError(
            f"{url}: the set's tars lie in other folders ({outside[0]}); copy those sets, and make it there"
        )
    samples = {tar.name: tar.samples for tar in manifest.tars}
    names = []
    for tar in samples:
        names += [tar, tar.removesuffix(".tar") + ".idx"]
    with ThreadPoolExecutor(THREADS) as pool:
        for name, _ in zip(names, pool.map(move, names), strict=True):
            progress(samples.get(name, 0))
        list(pool.map(move, (IDENTITIES_NAME, REJECTED_NAME, INDEX)))


def _digests(manifest: Manifest) -> dict[str, str]:
    """File name to SHA-256 of the files whose digest the manifest holds."""
    own = {INDEX: manifest.index_sha256, IDENTITIES_NAME: manifest.identities_sha256}
    return own | {tar.name: tar.sha256 for tar in manifest.tars}


def _compare(path: Path, manifest: Manifest, name: str, shown: Path | None = None) -> None:
    """Compare a file with the manifest's digest of `name`; errors name `shown` if it is given."""
    wanted = _digests(manifest).get(name)
    if wanted and (got := file_sha256(path)) != wanted:
        raise ShardError(f"{shown or path}: sha256: got {got or 'no file'}, wanted {wanted}")
    if not path.is_file():
        raise ShardError(f"{shown or path}: not found, wanted it beside the manifest")
