"""What a run has of the steps that it goes back from: it is moved out of the way, and nothing is removed."""

from __future__ import annotations

import itertools
import logging
import shutil
from pathlib import Path

from pipeline.files import make_folder, named, sync
from pipeline.run.best import kept_step
from pipeline.run.folder import RunFolder

logger = logging.getLogger(__name__)


def set_aside(run: Path, step: int) -> list[int]:
    """Move what is of later steps into a new folder of ``RUN/left/``, laid out as the run's, and log that.

    That is checkpoints, the results of evaluations, and ``best.json`` if it names one of these checkpoints. Of
    ``metrics.jsonl``, which training cuts after `step`, a copy goes there.

    Returns:
        the steps of the checkpoints. The run resumes from `step`, which is then the newest in its folder.

    Raises:
        NotWrittenError: naming the file or folder.
    """
    folder = RunFolder(run)
    later = [saved for saved in folder.saved_steps() if saved > step]
    results = folder.results_after(step)
    best = [folder.best] if (kept_step(run) or 0) > step else []
    # Checkpoints last, the newest first: wherever a kill comes in between, the next start finds no gap in them.
    moved = [*results, *best, *(folder.checkpoint(saved) for saved in reversed(later))]
    if not moved:
        return []
    place = _new_folder(folder.left)
    if folder.metrics.is_file():
        with named(place / folder.metrics.name):
            shutil.copyfile(folder.metrics, place / folder.metrics.name)
    for path in moved:
        target = place / path.relative_to(run)
        make_folder(target.parent)
        with named(path, "not set aside"):
            path.rename(target)
    sync(folder.path)
    what = f"{len(later)} checkpoints, {len(results)} files of results{', best.json' * len(best)}"
    logger.warning("%s: back to step %d: what was of later steps is in %s: %s", run, step, place, what)
    return later


def _new_folder(parent: Path) -> Path:
    numbers = itertools.count(1)
    place = next(parent / str(number) for number in numbers if not (parent / str(number)).exists())
    make_folder(place)
    return place
