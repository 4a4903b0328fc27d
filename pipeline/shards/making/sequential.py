"""Sets of any source; one that is fast in its own order only is shuffled by way of tars in that order.

The unshuffled tars cost a copy of the set on the disk while it is made. Nothing else is special: they are resumed,
written by all workers and parts, and a source like any other.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.files import NotWrittenError
from pipeline.shards.format.manifest import FILE_NAME as MANIFEST
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.format.rejected import read_rejected
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.one_tar import Written, write_tar
from pipeline.shards.making.plan import Plan, make_plan
from pipeline.shards.sources.tar_folder import open_tars


def make_set(
    plan: Plan,
    *,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
    progress: Callable[[Written], object] = lambda _written: None,
    write: Callable[[Plan, int], Written] = write_tar,
) -> Manifest | None:
    """As `make_shards`; for a sequential source by way of unshuffled tars, and `progress` counts each sample twice.

    A part needs all of the unshuffled tars. It writes its own first, and then helps those that make other parts; if
    none does, or none can be seen from here, it writes all. So it never has to be started a second time.

    Raises:
        ShardError: as `make_shards` does.
    """
    if not plan.source.sequential:
        return make_shards(plan, workers=workers, part=part, progress=progress, write=write)
    between = plan.folder.with_name(plan.folder.name + ".unshuffled")
    try:
        is_made = (plan.folder / MANIFEST).is_file()
        shuffled = plan if is_made else _shuffled(plan, between, workers, part, progress)
        manifest = make_shards(shuffled, workers=workers, part=part, progress=progress, write=write)
    except (ShardError, NotWrittenError):
        # Another process may have finished the set, and removed the tars that this one was about to read.
        if not (plan.folder / MANIFEST).is_file():
            raise
        return make_shards(plan)
    if manifest is not None:  # now, or by a run that was killed before this
        shutil.rmtree(between, ignore_errors=True)
    return manifest


def _shuffled(
    plan: Plan, between: Path, workers: int, part: tuple[int, int], progress: Callable[[Written], object]
) -> Plan:
    """The plan with the unshuffled tars, which are made in `between`, as its source."""
    made, size = plan.made, (plan.image_height, plan.image_width)
    first = make_plan(plan.source, between, seed=None, samples_per_tar=made.samples_per_tar, size=size)
    make_shards(first, workers=workers, part=part, help_others=True, progress=progress)
    source = open_tars(between, workers=workers)
    source = replace(source, set_aside=read_rejected(between))
    second = make_plan(source, plan.folder, seed=made.seed, samples_per_tar=made.samples_per_tar, size=size)
    # The manifest names the source itself, not the tars between.
    return replace(second, made=made, max_rejected=plan.max_rejected)
