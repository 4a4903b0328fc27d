"""From a source to a folder of shards: each tar whole or absent, then the manifest.

Every tar depends on the plan alone. So any process may write any of them, a killed run resumes with those
that are missing, and the bytes do not depend on what happened on the way.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.files import NotWrittenError, locked, named, remove_asides, sync, sync_all, write_file
from pipeline.shards.format.index import FILE_NAME as INDEX
from pipeline.shards.format.index import write_index
from pipeline.shards.format.manifest import FILE_NAME as MANIFEST
from pipeline.shards.format.manifest import PROGRESS, Manifest, TarEntry
from pipeline.shards.format.names import IDENTITIES_NAME, identities_file
from pipeline.shards.format.rejected import LEFT_EMPTY, REJECTED_NAME, SetAside, rejected_table
from pipeline.shards.making.claim import claim_folder
from pipeline.shards.making.one_tar import Written, files_of, has_record, read_record, write_tar
from pipeline.shards.making.plan import Plan
from pipeline.shards.sources.loss import TooManyRejectedError, check_loss, summary
from pipeline.shards.workers import each_done


def make_shards(
    plan: Plan,
    *,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
    help_others: bool = False,
    progress: Callable[[Written], object] = lambda _written: None,
    write: Callable[[Plan, int], Written] = write_tar,
) -> Manifest | None:
    """Write the shards of `plan`, resuming an earlier run of it.

    Args:
        plan: what to write.
        workers: processes that write tars; the result does not depend on it.
        part: (number, parts): write every `parts`-th tar only, the others being written elsewhere at any time.
        help_others: after its own tars write those of other parts that are missing; the result is never None.
        progress: called with the counts of each finished tar.
        write: what writes one tar, as `write_tar` does.

    Returns:
        The manifest, which the part that finishes last writes; None while tars of other parts are missing.

    Raises:
        ShardError: another set is there, or a worker died.
        TooManyRejectedError: more samples were set aside than the plan allows. All tars stay, without a manifest.
        NotWrittenError: the disk is full, read-only or broken.
    """
    finished = claim_folder(plan)
    if finished is not None:
        return finished
    try:
        mine = range(part[0], plan.tars, part[1])
        # From the end, since the others begin at the front.
        others = [tar for tar in reversed(range(plan.tars)) if tar not in mine] if help_others else []
        for written in each_done(partial(write, plan), [*mine, *others], workers):
            progress(written)
        return _join(plan, part)
    except NotWrittenError:
        # Another process may have finished the set, and removed the folder with the locks.
        if not (plan.folder / MANIFEST).is_file():
            raise
        return _finished_by_another(plan)


def _join(plan: Plan, part: tuple[int, int]) -> Manifest | None:
    """Finish the set if all tars are there and no other part has; two parts may finish at the same time."""
    with locked(plan.folder / PROGRESS / "lock"):
        if (plan.folder / MANIFEST).is_file():
            return _finished_by_another(plan)
        if all(has_record(plan, tar) for tar in range(plan.tars)):
            return _finish(plan)
        _sync(plan, range(part[0], plan.tars, part[1]))
        return None


def _finished_by_another(plan: Plan) -> Manifest:
    """The manifest that another process has written, which may have been killed before its records were removed."""
    shutil.rmtree(plan.folder / PROGRESS, ignore_errors=True)
    return Manifest.load(plan.folder)


def _sync(plan: Plan, tars: Iterable[int], *others: Path) -> None:
    """Put finished tars and other files, and their names, on the disk."""
    sync_all([*others, *chain.from_iterable(files_of(plan, tar) for tar in tars)])
    sync(plan.folder)


def _finish(plan: Plan) -> Manifest:
    """Join the records of all tars into the set's own files; the manifest last, after all else is on the disk."""
    tars: list[TarEntry] = []
    set_aside = list(plan.source.set_aside)
    images = np.zeros(len(plan.source.identities), np.int64)
    for tar in range(plan.tars):
        record = read_record(plan, tar)
        set_aside += record.set_aside
        images += np.bincount(record.rows["label"], minlength=len(images))
        tars += [record.entry] if record.entry.samples else []
    # Labels are in the tars already, so such an identity stays as a class without samples.
    set_aside += [SetAside(plan.source.identities[label], LEFT_EMPTY, 0) for label in np.where(images == 0)[0]]
    samples = int(images.sum())
    write_file(plan.folder / REJECTED_NAME, rejected_table(set_aside), synced=False)
    if not samples:
        reasons = summary(set_aside)
        raise TooManyRejectedError(f"{plan.folder}: every file was set aside; see {REJECTED_NAME}: {reasons}")
    check_loss(str(plan.folder), samples, set_aside, plan.max_rejected)
    identities = identities_file(plan.source.identities)
    write_file(plan.folder / IDENTITIES_NAME, identities, synced=False)
    pieces = (read_record(plan, tar).rows for tar in range(plan.tars))
    manifest = Manifest(
        samples=samples,
        identities=len(plan.source.identities),
        image_height=plan.image_height,
        image_width=plan.image_width,
        tars=tuple(tars),
        identities_sha256=hashlib.sha256(identities).hexdigest(),
        index_sha256=write_index(plan.folder, pieces, samples, synced=False),
        set_aside=len(set_aside),
        made=plan.made,
    )
    _sync(plan, range(plan.tars), plan.folder / REJECTED_NAME, plan.folder / IDENTITIES_NAME, plan.folder / INDEX)
    remove_asides(plan.folder)
    manifest.save(plan.folder)
    with named(plan.folder / PROGRESS, "not removed"):
        shutil.rmtree(plan.folder / PROGRESS)
    return manifest
