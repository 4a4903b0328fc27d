"""``history.jsonl``: a line for each start of a run. What is fixed in a run stands in its checkpoints, not here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.versions import code_digest, versions
from pipeline.files import append
from pipeline.recipe.schema import Recipe
from pipeline.run.folder import RunFolder
from pipeline.run.record import device_name
from pipeline.shards.format.manifest import Manifest


@dataclass(frozen=True)
class Begun:
    """What the history keeps of a start.

    Attributes:
        step: resumed from; 0 for a new run.
        command: that started it.
        mark: the same for all starts of one supervisor; empty without one.
        num_ranks, device: where it runs.
        from_step: the checkpoint that was asked for; None: the newest.
        changes: what differs from the start before, a line each.
        left: steps of the checkpoints that were set aside.
    """

    step: int
    command: str
    mark: str
    num_ranks: int
    device: torch.device
    from_step: int | None = None
    changes: Sequence[str] = ()
    left: Sequence[int] = ()


def note_start(run: Path, recipe: Recipe, manifest: Manifest, begun: Begun) -> None:
    """Append a line.

    Raises:
        NotWrittenError: naming the file.
    """
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "command": begun.command,
        "mark": begun.mark,
        "step": begun.step,
        "from_step": begun.from_step,
        "left": list(begun.left),
        "recipe_sha256": hashlib.sha256(recipe.to_yaml().encode()).hexdigest(),
        "changes": list(begun.changes),
        "ranks": begun.num_ranks,
        "threads": torch.get_num_threads(),
        "device": device_name(begun.device),
        "shards_sha256": manifest.digest,
        "code": code_digest(),
        "versions": versions(),
    }
    append(RunFolder(run).history, json.dumps(line, ensure_ascii=False) + "\n")


def read_history(run: Path) -> list[dict[str, Any]]:
    """The lines, oldest first; without those that are torn."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for text in RunFolder(run).history.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict):
                    lines.append(line)
    return lines


def has_begun(run: Path, mark: str) -> bool:
    """Whether a start of this supervisor has begun or resumed the run: those after it resume it, whatever was asked."""
    return bool(mark) and any(line.get("mark") == mark for line in read_history(run))


def has_gone_back(run: Path, step: int, mark: str) -> bool:
    """Whether a start of this supervisor has gone back to the step: those after it resume from the newest."""
    return bool(mark) and any((line.get("from_step"), line.get("mark")) == (step, mark) for line in read_history(run))
