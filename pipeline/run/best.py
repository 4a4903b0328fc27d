"""The best checkpoint of a run: ``RUN/best.json`` names it, and saves never drop it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.files import named, write_file
from pipeline.run.folder import RunFolder


@dataclass(frozen=True)
class Best:
    """The checkpoint of highest accuracy on a set; of several, the earliest.

    Attributes:
        step: of the checkpoint.
        set: name of the evaluation set.
        accuracy: k-fold, between 0 and 1.
    """

    step: int
    set: str
    accuracy: float


def read_best(run: Path) -> Best | None:
    """What ``best.json`` of a run says; None if there is none.

    Raises ValueError naming the file when it holds something else.
    """
    file = RunFolder(run).best
    try:
        return Best(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}, wanted step, set and accuracy") from None


def kept_step(run: Path) -> int | None:
    """The step that saves must not drop: None without a file, or with one that cannot be read."""
    try:
        best = read_best(run)
    except ValueError:
        return None
    return best.step if best else None


def write_best(run: Path, best: Best | None) -> None:
    """Make ``best.json`` say `best`: whole or as it was before."""
    file = RunFolder(run).best
    if best is None:
        with named(file, "not removed"):
            file.unlink(missing_ok=True)
    else:
        write_file(file, (json.dumps(asdict(best), indent=2) + "\n").encode())
