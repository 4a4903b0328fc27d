"""Which checkpoints stay, how others go, and what an interrupted save or removal left; no file of others is touched."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Collection
from pathlib import Path

from cluster.stop import one_line
from pipeline.files import named, sync
from pipeline.run.best import kept_step
from pipeline.run.checkpoint import BACKBONE, META, complete_steps
from pipeline.run.folder import RunFolder
from pipeline.run.whole import damage, damage_at_sight

logger = logging.getLogger(__name__)

# The files of a checkpoint, and what a kill leaves of the one that is written aside.
_OURS = re.compile(
    rf"{re.escape(META)}(\.[0-9a-f]{{12}}\.part)?|{re.escape(BACKBONE)}|rows-\d{{10,}}-\d{{10,}}\.safetensors"
)


def superseded(
    steps: list[int],
    keep: int,
    keep_every: int | None,
    best: int | None = None,
    doubted: Collection[int] = (),
) -> list[int]:
    """The steps whose checkpoints go once the newest of `steps` is saved.

    Step 0, `best`, the last `keep` and the multiples of `keep_every` stay. A doubted one counts as none of these: it
    goes when as many good ones are newer.

    Args:
        steps: of all checkpoints up to the one that was saved, rising.
        keep, keep_every: as the recipe has them.
        best: the step of the best checkpoint.
        doubted: steps whose checkpoints are damaged.
    """
    good = [step for step in steps if step != 0 and step not in doubted]
    if len(good) <= keep:
        return []
    older = [step for step in steps if step != 0 and step < good[-keep]]
    return [step for step in older if step in doubted or (step != best and (keep_every is None or step % keep_every))]


def drop_superseded(run: Path, step: int, keep: int, keep_every: int | None, doubted: Collection[int]) -> None:
    """Remove the checkpoints that go once that of `step` is saved.

    What does not count as kept: the `doubted`, and what is damaged at sight. Digests are not read: that would be, at
    every save, to read as much as is kept. They were read at the start of the checkpoint resumed from, and whatever is
    newer this process has written; so only in an older one a change that leaves its size is not seen.

    Args:
        run: its folder.
        step: of the checkpoint that was saved.
        keep, keep_every: as the recipe has them.
        doubted: steps whose checkpoints were found damaged before.
    """
    steps = [saved for saved in complete_steps(run) if saved <= step]
    damaged, good = set(doubted), 0
    for saved in reversed([saved for saved in steps if saved != 0 and saved not in doubted]):
        if damage_at_sight(RunFolder(run).checkpoint(saved)):
            damaged.add(saved)
        else:
            good += 1
        if good == keep:
            break
    drop(run, superseded(steps, keep, keep_every, kept_step(run), damaged))


def drop(run: Path, steps: Collection[int]) -> None:
    """Remove the checkpoints of these steps, and what earlier removals left. One that cannot be removed is logged."""
    folder = RunFolder(run)
    for step in folder.saved_steps():
        place = folder.checkpoint(step)
        try:
            # By the names in it: a meta.json that cannot be looked at is not one that is gone.
            if step in steps or META not in {file.name for file in place.iterdir()}:
                discard(place)
        except OSError as error:
            logger.warning("%s", one_line(error))


def sweep(run: Path) -> None:
    """Finish what interrupted saves and removals left: torn saves go, a whole one gets its name. Before any save.

    On a disk that cannot be written all stays as it is: the first save reports that.
    """
    folder = RunFolder(run)
    for step in folder.partial_steps():
        partial, final = folder.partial(step), folder.checkpoint(step)
        torn = damage_at_sight(partial)
        if not torn and not damage_at_sight(final):  # the step was saved twice: only now the bytes are worth reading
            torn = damage(partial)
        with contextlib.suppress(OSError):
            if torn:
                discard(partial)
            else:
                put_in_place(partial, final)
    drop(run, ())


def put_in_place(partial: Path, final: Path) -> None:
    """Give a whole checkpoint its name. One that has the name goes; files beside it that are not ours move along.

    Raises:
        NotWrittenError: naming the folder.
    """
    with named(final):
        if final.is_dir():
            # From here on a kill leaves the whole one under its partial name, where `sweep` finds it.
            discard(final)
        if final.is_dir():
            for other in final.iterdir():
                other.rename(partial / other.name)
            final.rmdir()
        partial.rename(final)
    sync(final.parent)


def discard(folder: Path) -> None:
    """Remove a checkpoint's files, and its folder unless there are other files in it.

    Raises:
        NotWrittenError: naming the folder.
    """
    with named(folder, "not removed"):
        (folder / META).unlink(missing_ok=True)  # first: without it, what a kill leaves is no checkpoint
        for file in folder.iterdir():
            if _OURS.fullmatch(file.name):
                file.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()
