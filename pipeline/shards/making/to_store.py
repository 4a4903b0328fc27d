"""Shards straight to an object store: each tar goes up as soon as it is written, and leaves the disk.

The record of a tar is sent after it. So any machine can resume, and machines that write parts of one set share nothing
but the store. The process that finds the records of all tars there writes the manifest, last of all: a folder that has
one is complete.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipeline.shards.format.index import FILE_NAME as INDEX
from pipeline.shards.format.manifest import FILE_NAME as MANIFEST
from pipeline.shards.format.manifest import PROGRESS, Manifest, ShardError
from pipeline.shards.format.names import IDENTITIES_NAME
from pipeline.shards.format.rejected import REJECTED_NAME
from pipeline.shards.making.claim import refuse_other, refuse_other_plan
from pipeline.shards.making.one_tar import Written, has_record, record_files, write_tar
from pipeline.shards.making.plan import Plan
from pipeline.shards.stores.transfer import THREADS
from pipeline.shards.stores.urls import fetch_whole, named_place, open_store, remove_progress, send


def make_in_store(plan: Plan, url: str, make: Callable[..., Manifest | None]) -> Manifest | None:
    """Write the shards of `plan` to `url`, resuming an earlier run of any machine.

    Args:
        plan: what to write; its folder holds what is not sent yet, and is removed after the set is complete.
        url: of the folder for the set.
        make: `make_shards` or what does as much, all of its arguments but the plan and `write` given.

    Returns:
        The manifest; None while tars of other parts are missing.

    Raises:
        ShardError: as `make_shards`, or another set is at `url`.
        NotWrittenError: as `make_shards`, or the store refuses.
    """
    manifest = _stored(plan, url)
    try:
        if manifest is None:
            _claim(plan, url)
            if (plan.folder / MANIFEST).is_file() and not _all_are_sent(plan, url):
                shutil.rmtree(plan.folder)  # a set that was made for another place
            make = partial(make, plan, write=partial(_write, url))
            manifest = make()
            if manifest is None and _fetch_records(plan, url):
                manifest = make(progress=lambda _written: None)  # nothing is left to do but the manifest
            if manifest is None:
                return _stored(plan, url)  # another part may have been last just now
            for name in (REJECTED_NAME, IDENTITIES_NAME, INDEX):
                _send(plan.folder / name, f"{url}/{name}")
            _send(plan.folder / MANIFEST, f"{url}/{MANIFEST}")
    except (ShardError, OSError):
        # Another part may have been last at the same time, and have removed what this one was about to read.
        manifest = _stored(plan, url)
        if manifest is None:
            raise
    _tidy(plan, url)
    return manifest


def _claim(plan: Plan, url: str) -> None:
    """Say in the store which plan is being written there.

    The file's name is the digest of its content. So it is never read half-written, and of two plans at the same time
    neither continues.

    Raises:
        ShardError: it is another already.
        NotWrittenError: the store refuses.
    """
    facts = json.dumps(plan.facts(), sort_keys=True).encode()
    place = f"{url}/{PROGRESS}/plan-{hashlib.sha256(facts).hexdigest()[:16]}.json"
    store, path = open_store(place)
    folder = path.rpartition("/")[0]
    with named_place(place):
        store.makedirs(folder, exist_ok=True)
        store.pipe_file(path, facts)
        store.invalidate_cache()
        others = {store._strip_protocol(found) for found in store.glob(f"{folder}/plan-*.json")} - {path}
        if others:
            store.rm(path)
            refuse_other(url, json.loads(store.cat_file(others.pop())), plan.facts())


def _write(url: str, plan: Plan, tar: int) -> Written:
    """Write a tar and send it and its record, unless they are there."""

    def is_sent() -> bool:
        place = f"{url}/{PROGRESS}"
        store, path = open_store(place)
        with named_place(place, "not read"):
            return bool(store.exists(f"{path}/{record_files(plan, tar)[-1].name}"))

    if not has_record(plan, tar) and is_sent():
        _fetch_record(plan, url, tar)
    return write_tar(
        plan, tar, send=lambda file: _send(file, f"{url}/{file.relative_to(plan.folder)}"), is_sent=is_sent
    )


def _all_are_sent(plan: Plan, url: str) -> bool:
    """Whether the store has the records of all tars."""
    place = f"{url}/{PROGRESS}"
    store, path = open_store(place)
    with named_place(place, "not listed"):
        store.invalidate_cache()
        there = {name.rpartition("/")[2] for name in store.ls(path, detail=False)}
    return all(record_files(plan, tar)[-1].name in there for tar in range(plan.tars))


def _fetch_records(plan: Plan, url: str) -> bool:
    """Copy the records of all tars from the store, if all are there."""
    if not _all_are_sent(plan, url):
        return False
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(partial(_fetch_record, plan, url), range(plan.tars)))
    return True


def _fetch_record(plan: Plan, url: str, tar: int) -> None:
    store, path = open_store(f"{url}/{PROGRESS}")
    for file in record_files(plan, tar):
        fetch_whole(store, f"{path}/{file.name}", file)


def _send(file: Path, place: str) -> None:
    """Send a file; a tar or its index leaves the disk."""
    store, path = open_store(place)
    with named_place(place):
        send(file, store, path)
        if file.suffix in {".tar", ".idx"}:
            file.unlink()


def _stored(plan: Plan, url: str) -> Manifest | None:
    """The manifest at `url`, if a set is complete there.

    Raises:
        ShardError: it is of another plan.
    """
    store, root = open_store(url)
    with named_place(f"{url}/{MANIFEST}", "not read"):
        store.invalidate_cache()
        if not store.exists(f"{root}/{MANIFEST}"):
            return None
        manifest = Manifest.parse(store.cat_file(f"{root}/{MANIFEST}"), f"{url}/{MANIFEST}")
    refuse_other_plan(plan, manifest, url)
    return manifest


def _tidy(plan: Plan, url: str) -> None:
    """Remove what was on the way, here and in the store."""
    shutil.rmtree(plan.folder, ignore_errors=True)
    remove_progress(*open_store(url))
