"""How a run is doing, from what lies in its folder: nothing is asked of the processes that train."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.lease import BEAT_SECONDS, Holder, last_holder
from pipeline.run.best import Best, read_best
from pipeline.run.changes import saved_keys
from pipeline.run.checkpoint import complete_steps
from pipeline.run.folder import RunFolder
from pipeline.run.history import read_history
from pipeline.run.metrics_log import read_metrics

State = Literal["training", "finished", "stopped", "killed"]


@dataclass(frozen=True)
class Status:
    """A run as its folder shows it.

    Attributes:
        run: the folder.
        state: finished has the recipe's last step; stopped ended by itself; killed left its claim on the folder behind.
        holder: the process that trains, or that was killed.
        step, steps: logged or saved last, and the recipe's.
        saved: newest checkpoint.
        starts: of the run.
        time: of the newest line of the log, in seconds since the epoch.
        record: of the newest step in the log, by the names that Prometheus has.
        evaluation: newest accuracy by set, between 0 and 1.
        best: checkpoint.
        goodput_ratio: share of the wall time in steps that count.
        left_seconds: to the last step, at the pace of the newest record; None unless it trains.
    """

    run: Path
    state: State
    holder: Holder | None
    step: int
    steps: int
    saved: int | None
    starts: int
    time: float | None
    record: dict[str, Any]
    evaluation: dict[str, float]
    best: Best | None
    goodput_ratio: float | None
    left_seconds: float | None


def runs_in(folder: Path) -> list[Path]:
    """The folder if it is a run's; else the run's folders below it, by name."""

    def found() -> Iterator[Path]:
        for place, folders, _ in os.walk(folder):
            run = RunFolder(Path(place))
            if run.recipe.is_file() and run.facts.is_file():  # a recipe alone may be anybody's
                folders.clear()
                yield Path(place)

    return sorted(found())


def status_of(run: Path, *, beat_seconds: float = BEAT_SECONDS) -> Status:
    """Read the status of a run.

    A run that was trained on another host, and was not ended there, is watched for some beats of its claim.

    Raises:
        ValueError: naming the file that holds no recipe.
    """
    folder = RunFolder(run)
    steps, batch = _course(run)
    saved = max(complete_steps(run), default=None)
    records = read_metrics(folder.metrics)
    logged: dict[str, Any] = next((record for record in reversed(records) if "loss" in record), {})
    evaluated: dict[str, Any] = next(
        (record["evaluation"] for record in reversed(records) if "evaluation" in record), {}
    )
    holder, lives = last_holder(folder.claims, beat_seconds=beat_seconds)
    state: State = "training" if lives else "stopped"
    if not lives and saved is not None and saved >= steps:
        state = "finished"
    elif not lives and holder:
        state = "killed"
    step = max(logged.get("step", 0), saved or 0)
    pace = logged.get("global_samples_per_second")
    best = None
    with contextlib.suppress(ValueError):
        best = read_best(run)
    return Status(
        run=run,
        state=state,
        holder=holder,
        step=step,
        steps=steps,
        saved=saved,
        starts=len(read_history(run)),
        time=logged.get("time"),
        record=logged,
        evaluation={name: result["accuracy"] for name, result in evaluated.items()},
        best=best,
        goodput_ratio=_goodput(folder.goodput),
        left_seconds=(steps - step) * batch / pace if lives and pace else None,
    )


def _course(run: Path) -> tuple[int, int]:
    """Steps and samples of a step."""
    keys = saved_keys(run)
    try:
        return int(keys["optimizer.steps"]), int(keys["data.global_batch"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{RunFolder(run).recipe}: got {error!r}, wanted the recipe of a run") from None


def _goodput(file: Path) -> float | None:
    try:
        return float(json.loads(file.read_text())["goodput_ratio"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
