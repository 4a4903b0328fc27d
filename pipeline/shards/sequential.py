"""Sources that can be read only in their own order: to tars in that order first, and from those shuffled.

The tars between cost a copy of the set on the disk while it is made, and nothing else is special: they are resumable,
written by all workers and parts, and a source like any other.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.shards.build import REJECTED_NAME, make_shards
from pipeline.shards.manifest import FILE_NAME as MANIFEST
from pipeline.shards.manifest import Manifest
from pipeline.shards.one_tar import Written, write_tar
from pipeline.shards.plan import Plan, make_plan
from pipeline.shards.sources import SetAside
from pipeline.shards.sources.tar_folder import open_tars


def make_sequentially(
    plan: Plan,
    *,
    workers: int,
    part: tuple[int, int],
    progress: Callable[[Written], object],
    write: Callable[[Plan, int], Written] = write_tar,
) -> Manifest | None:
    """As `make_shards`, for a source that is quick only in its own order; `progress` hears of each sample twice.

    Raises:
        ShardError: as `make_shards` does.
    """
    if (plan.folder / MANIFEST).is_file():
        return make_shards(plan)
    between = plan.folder.with_name(plan.folder.name + ".unshuffled")
    made, size = plan.made, (plan.image_height, plan.image_width)
    first = make_plan(plan.source, between, seed=None, samples_per_tar=made.samples_per_tar, size=size)
    if make_shards(first, workers=workers, part=part, progress=progress) is None:
        return None
    source = open_tars(between, workers=workers)
    source = replace(source, set_aside=[*source.set_aside, *_set_aside(between)])
    second = make_plan(source, plan.folder, seed=made.seed, samples_per_tar=made.samples_per_tar, size=size)
    # The set is made from the source; that it went by way of tars is nobody's business.
    shuffled = replace(second, made=made)
    manifest = make_shards(shuffled, workers=workers, part=part, progress=progress, write=write)
    if manifest is not None:
        shutil.rmtree(between)
    return manifest


def _set_aside(folder: Path) -> list[SetAside]:
    lines = (folder / REJECTED_NAME).read_text().splitlines()[1:]
    return [SetAside(*line.split("\t")) for line in lines]
