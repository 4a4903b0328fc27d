"""Whether a folder may take the shards of a plan: it is new, or holds (part of) the same shards.

The claim names a plan and no process, unlike that of `cluster.lease`: any number of processes may write parts of one
plan, and the same tar is the same bytes from each.

A source that changed under the same names is noticed. While a set is made, a tar with a changed sample is written
again; for a finished set the changed files are compared with the bytes in its tars.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files import NotWrittenError, locked, make_folder, write_file
from pipeline.shards.format.manifest import FILE_NAME as MANIFEST
from pipeline.shards.format.manifest import PROGRESS, Manifest, ShardError
from pipeline.shards.images import SetAsideError
from pipeline.shards.making.listing import Changes, changes, hash_of, hashes_of, read_hashes, write_hashes
from pipeline.shards.making.plan import Plan
from pipeline.shards.sources import Source
from pipeline.shards.sources.tar_folder import open_tars

LISTING = "listing.u64"  # in the folder of progress

AT_ONCE = 1 << 12  # samples that are compared together


def claim_folder(plan: Plan) -> Manifest | None:
    """Prepare the plan's folder for writing, or return the manifest if the shards are complete already.

    Raises:
        ShardError: the folder holds something else, (part of) the shards of another plan, or of a source that changed.
    """
    try:
        return _claim(plan)
    except NotWrittenError:
        # Another process may have finished the set, and removed the folder with the lock.
        if manifest := _finished(plan):
            return manifest
        raise


def _finished(plan: Plan) -> Manifest | None:
    """The manifest of the plan's shards, if they are complete."""
    if not (plan.folder / MANIFEST).is_file():
        return None
    manifest = Manifest.load(plan.folder)
    _refuse_changes(plan, manifest)
    # A run killed between its last two steps has a manifest and its records still.
    shutil.rmtree(plan.folder / PROGRESS, ignore_errors=True)
    return manifest


def _claim(plan: Plan) -> Manifest | None:
    """The manifest if the shards are complete; if not, say in the folder which plan is being written there."""
    folder, progress = plan.folder, plan.folder / PROGRESS
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not progress.is_dir())):
        if manifest := _finished(plan):  # looked for after its records, which another process removes last
            return manifest
        raise ShardError(f"{folder}: is not empty and holds no shards, wanted a new or an empty folder")
    make_folder(progress)
    with locked(progress / "lock"):  # several machines may begin at once
        if manifest := _finished(plan):
            return manifest
        if (progress / "plan.json").is_file():
            there = json.loads((progress / "plan.json").read_bytes())
            refuse_other(folder, there, plan.facts(), _changes_since(progress / LISTING, plan, there))
        else:
            write_hashes(progress / LISTING, plan.source)
            write_file(progress / "plan.json", json.dumps(plan.facts(), indent=1).encode())
    return None


def _refuse_changes(plan: Plan, manifest: Manifest) -> None:
    """Make sure that a finished set here is the plan's, and that its source still has the same bytes."""
    if manifest.made.source_sha256 != plan.made.source_sha256 and manifest.made.source == plan.made.source:
        found = changes(hashes_of(plan.source), hashes_of(open_tars(plan.folder)))
        refuse_other_plan(plan, manifest, plan.folder, str(found))
    refuse_other_plan(plan, manifest, plan.folder)
    modified = plan.source.modified(np.arange(len(plan.source.labels)))
    newer = np.flatnonzero(modified > (plan.folder / MANIFEST).stat().st_mtime)
    if len(newer) and (changed := count_changed(plan.source, newer, open_tars(plan.folder))):
        found = Changes(0, 0, changed)
        raise ShardError(f"{plan.folder}: holds other shards: {found}; choose another folder or remove it")


def _changes_since(listing: Path, plan: Plan, there: dict[str, object]) -> str:
    """How the source of an unfinished set has changed, in words; empty if it has not."""
    if there.get("source_sha256") == plan.made.source_sha256 or there.get("source") != plan.made.source:
        return ""
    try:
        return str(changes(hashes_of(plan.source), read_hashes(listing)))
    except (FileNotFoundError, ValueError):  # begun by an older version, or torn by a power cut
        return ""


def count_changed(source: Source, samples: NDArray[np.int64], there: Source) -> int:
    """How many of some samples of a source have other bytes than in the tars that were made of it."""
    keys = hashes_of(there)[:, 0]
    places = np.argsort(keys)
    keys = keys[places]
    changed = 0
    for first in range(0, len(samples), AT_ONCE):
        for key, image, _ in source.read_many(samples[first : first + AT_ONCE]):
            # Sets that were joined may have a key each.
            ends = (np.searchsorted(keys, np.uint64(hash_of(key)), side) for side in ("left", "right"))
            images = [there.read(place) for place in places[slice(*ends)].tolist()]
            if isinstance(image, SetAsideError):
                changed += bool(images)
            else:
                changed += image not in images
    return changed


def refuse_other_plan(plan: Plan, manifest: Manifest, where: Path | str, more: str = "") -> None:
    """Make sure that a finished set is the plan's.

    Raises:
        ShardError: it is another's; names what differs, and `more`.
    """
    size = replace(plan, image_height=manifest.image_height, image_width=manifest.image_width)
    refuse_other(where, replace(size, made=manifest.made).facts(), plan.facts(), more)


def refuse_other(folder: Path | str, there: dict[str, object], wanted: dict[str, object], more: str = "") -> None:
    """Make sure that the facts of shards that are there are those of a plan.

    Raises:
        ShardError: they are not; names every one that differs, and `more`.
    """
    names = [name for name in wanted if there.get(name) != wanted[name]]
    if names:
        differences = ", ".join(f"{name}: got {there.get(name)}, wanted {wanted[name]}" for name in names)
        more = f": {more}" if more else ""
        raise ShardError(f"{folder}: holds other shards ({differences}){more}; choose another folder or remove it")
