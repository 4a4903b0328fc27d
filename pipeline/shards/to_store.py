"""Shards straight to an object store: each tar goes up as soon as it is written, and leaves the disk.

The local folder of the plan holds no more than the tars at hand and the records of those that went; machines that write
parts of one set share that folder. The manifest goes up last: where it is, the set is complete.
"""

import shutil
from collections.abc import Callable
from functools import partial

from pipeline.shards.build import IDENTITIES_NAME, REJECTED_NAME
from pipeline.shards.errors import ShardError
from pipeline.shards.files import write_file
from pipeline.shards.index import FILE_NAME as INDEX
from pipeline.shards.manifest import FILE_NAME as MANIFEST
from pipeline.shards.manifest import Manifest
from pipeline.shards.one_tar import files_of, write_tar
from pipeline.shards.plan import PROGRESS, Plan
from pipeline.shards.stores import fetch, open_store, send


def make_in_store(plan: Plan, url: str, make: Callable[..., Manifest | None]) -> Manifest | None:
    """Write the shards of `plan` to `url`, going on where an earlier run stopped.

    Args:
        plan: what to write; its folder is for what is on the way, and goes when the set is complete.
        url: of the folder for the set.
        make: `make_shards` or what does as much, all but the plan and `write` given.

    Returns:
        The manifest; None while tars of other parts are missing.

    Raises:
        ShardError: as `make_shards`, or the store refuses.
    """
    store, root = open_store(url)
    if store.exists(f"{root}/{MANIFEST}") and not (plan.folder / PROGRESS).exists():
        # The set is complete: what is left to do is to compare its plan.
        plan.folder.mkdir(parents=True, exist_ok=True)
        fetch(store, f"{root}/{MANIFEST}", plan.folder / MANIFEST)
    manifest = make(plan, write=partial(_write_and_send, url))
    if manifest is None:
        return None
    try:
        for name in (REJECTED_NAME, IDENTITIES_NAME, INDEX, MANIFEST):
            if (plan.folder / name).is_file():
                send(plan.folder / name, store, f"{root}/{name}")
    except OSError as error:
        raise ShardError(f"{url}: not written: {error.strerror or error}") from error
    shutil.rmtree(plan.folder)
    return manifest


def _write_and_send(url: str, plan: Plan, tar: int) -> int:
    """Write one tar, send it, and remove it here; a mark says that it went, and what it was is in its record."""
    sent = plan.folder / PROGRESS / f"{plan.tar_name(tar)}.sent"
    if not sent.is_file():
        write_tar(plan, tar)
        store, root = open_store(url)
        try:
            store.makedirs(root, exist_ok=True)
            for path in files_of(plan, tar):
                send(path, store, f"{root}/{path.name}")
        except OSError as error:
            raise ShardError(f"{url}: not written: {error.strerror or error}") from error
        write_file(sent, url.encode(), synced=False)
    for path in files_of(plan, tar):
        path.unlink()
    return int(plan.bounds[tar + 1] - plan.bounds[tar])
