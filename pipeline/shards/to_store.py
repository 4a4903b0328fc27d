"""Shards straight to an object store: each tar goes up as soon as it is written, and leaves the disk.

The plan's folder holds no more than the tars at hand and the records of those that went; machines that write parts of
one set share that folder. The manifest goes up last: where it is, the set is complete.
"""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.files import NotWrittenError
from pipeline.shards.build import IDENTITIES_NAME, REJECTED_NAME
from pipeline.shards.errors import ShardError
from pipeline.shards.index import FILE_NAME as INDEX
from pipeline.shards.manifest import FILE_NAME as MANIFEST
from pipeline.shards.manifest import Manifest
from pipeline.shards.one_tar import write_tar
from pipeline.shards.plan import Plan, refuse_other_plan
from pipeline.shards.stores import fetch, open_store, send


def make_in_store(plan: Plan, url: str, make: Callable[..., Manifest | None]) -> Manifest | None:
    """Write the shards of `plan` to `url`, going on where an earlier run stopped.

    Args:
        plan: what to write; its folder is for what is on the way, and goes when the set is complete.
        url: of the folder for the set.
        make: `make_shards` or what does as much, all of its arguments but the plan and `write` given.

    Returns:
        The manifest; None while tars of other parts are missing.

    Raises:
        ShardError: as `make_shards`, another set is at `url`, or the store refuses.
    """
    if complete := _stored(plan, url):
        return complete
    try:
        manifest = make(plan, write=partial(write_tar, send=partial(_send, url)))
        if manifest is not None:
            for name in (REJECTED_NAME, IDENTITIES_NAME, INDEX, MANIFEST):
                _send(url, plan.folder / name)
            shutil.rmtree(plan.folder, ignore_errors=True)
    except (ShardError, NotWrittenError):
        # Another part may have been last at the same time, and have sent and removed all.
        if complete := _stored(plan, url):
            return complete
        raise
    return manifest


def _send(url: str, path: Path) -> None:
    """Send a file, and remove it here unless the next run needs it to see that all was written."""
    store, root = open_store(url)
    try:
        store.makedirs(root, exist_ok=True)
        send(path, store, f"{root}/{path.name}")
        if path.suffix in {".tar", ".idx"}:
            path.unlink()
    except OSError as error:
        raise ShardError(f"{url}/{path.name}: not written: {error.strerror or error}") from error


def _stored(plan: Plan, url: str) -> Manifest | None:
    """The manifest at `url`, if a set is complete there.

    Raises:
        ShardError: it is of another plan.
    """
    store, root = open_store(url)
    if not store.exists(f"{root}/{MANIFEST}"):
        return None
    with tempfile.TemporaryDirectory() as aside:
        fetch(store, f"{root}/{MANIFEST}", Path(aside) / MANIFEST)
        manifest = Manifest.load(Path(aside))
    refuse_other_plan(plan, manifest, url)
    return manifest
