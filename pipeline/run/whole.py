"""Which checkpoints are whole: their files are, bit for bit, what was written. Nothing is read from one before that."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Collection
from pathlib import Path

import torch

from cluster.ranks.collectives import Group, gather_objects, num_ranks, rank_in
from pipeline.run.checkpoint import BACKBONE, CheckpointError, complete_steps, read_backbone, read_meta
from pipeline.run.folder import RunFolder
from pipeline.run.tensor_file import file_facts

logger = logging.getLogger(__name__)


def damage(folder: Path, part: int = 0, parts: int = 1, files: Collection[str] | None = None) -> list[str]:
    """What is wrong with a checkpoint, one line each.

    Args:
        folder: of the checkpoint.
        part, parts: the share of its files that are read for their digests.
        files: names of those that are looked at; None: all.
    """
    faults = damage_at_sight(folder, files)
    if faults:
        return faults
    for number, (name, wanted) in enumerate(sorted(read_meta(folder).files.items())):
        if number % parts == part and (files is None or name in files):
            try:
                got = file_facts(folder / name)
            except OSError as error:
                faults.append(f"{folder / name}: {error.strerror}")
                continue
            if got != wanted:
                faults.append(f"{folder / name}: damaged: got SHA-256 {got.sha256[:12]}…, wanted {wanted.sha256[:12]}…")
    return faults


def damage_at_sight(folder: Path, files: Collection[str] | None = None) -> list[str]:
    """What is wrong with a checkpoint's meta.json and the sizes of its files, which cost nothing to look at."""
    try:
        meta = read_meta(folder)
    except CheckpointError as error:
        return [str(error)]
    faults = []
    for name, wanted in sorted(meta.files.items()):
        if files is None or name in files:
            try:
                size = (folder / name).stat().st_size
            except OSError as error:
                faults.append(f"{folder / name}: {error.strerror}")
                continue
            if size != wanted.bytes:
                faults.append(f"{folder / name}: got {size} bytes, wanted {wanted.bytes}")
    return faults


def newest_whole(run: Path, group: Group) -> int | None:
    """The step of the newest checkpoint that is whole; None if there is no checkpoint.

    All ranks together; each reads its share of the files once. A damaged checkpoint is logged and passed over.

    Raises:
        CheckpointError: when there are checkpoints, and none is whole; when ranks see other folders.
    """
    steps = _steps_of_all(run, group)
    return _newest(run, steps, lambda step: _damage_of_all(run, step, group), rank_in(group) == 0) if steps else None


def whole_step(run: Path, step: int | None, group: Group) -> int:
    """The step to load: `step` or, for None, the newest that is whole. All ranks together.

    Raises:
        CheckpointError: when it is damaged or not there, naming those that are; as `newest_whole` does.
    """
    if step is None:
        found = newest_whole(run, group)
        if found is None:
            raise _not_there(run, None, [])
        return found
    _require_there(run, step, _steps_of_all(run, group))
    _require_none(_damage_of_all(run, step, group))
    return step


def load_backbone(run: Path, step: int | None = None) -> tuple[int, dict[str, torch.Tensor]]:
    """A backbone's parameters and buffers, for one process: those after `step` steps or, for None, of the newest whole.

    Only the backbone's file is verified: the rows may be many times as large. A damaged one is logged and passed over.

    Returns:
        the step, and the tensors by name.

    Raises:
        CheckpointError: when there is no such checkpoint, naming those that there are, or it is damaged.
    """
    steps, folder = complete_steps(run), RunFolder(run)

    def faults(step: int) -> list[str]:
        return damage(folder.checkpoint(step), files={BACKBONE})

    _require_there(run, step, steps)
    if step is None:
        step = _newest(run, steps, faults, True)
    else:
        _require_none(faults(step))
    return step, read_backbone(folder.checkpoint(step))


def _newest(run: Path, steps: list[int], faults_of: Callable[[int], list[str]], says: bool) -> int:
    for step in reversed(steps):
        faults = faults_of(step)
        if not faults:
            return step
        if says:
            for fault in faults:
                logger.warning("%s: passed over for the one before", fault)
    raise CheckpointError(f"{run}: checkpoints: got {steps}, all of them damaged, wanted one whole")


def _steps_of_all(run: Path, group: Group) -> list[int]:
    """Steps of the complete checkpoints as rank 0 sees them. Raises CheckpointError when ranks see other folders."""
    seen = gather_objects((socket.gethostname(), complete_steps(run)), group)
    steps: list[int] = seen[0][1]
    for rank, (host, other) in enumerate(seen):
        # (A network file system may show a host its folder of a minute ago: the lists need not be equal.)
        if (other or steps) and not set(other) & set(steps):
            raise CheckpointError(
                f"{run.absolute()}: rank {rank} on {host} sees checkpoints {other}, rank 0 on {seen[0][0]} sees "
                f"{steps}; wanted one folder that all hosts share"
            )
    return steps


def _damage_of_all(run: Path, step: int, group: Group) -> list[str]:
    mine = damage(RunFolder(run).checkpoint(step), rank_in(group), num_ranks(group))
    return sorted(set().union(*gather_objects(mine, group)))


def _require_there(run: Path, step: int | None, steps: list[int]) -> None:
    if not steps or (step is not None and step not in steps):
        raise _not_there(run, step, steps)


def _not_there(run: Path, step: int | None, steps: list[int]) -> CheckpointError:
    if not steps:
        got = "no checkpoint in it" if run.is_dir() else "no such folder"
        return CheckpointError(f"{run}: got {got}, wanted the folder of a run that has saved one")
    return CheckpointError(f"{run}: checkpoint: got step {step}, wanted one of {steps}")


def _require_none(faults: list[str]) -> None:
    if faults:
        raise CheckpointError("; ".join(faults))
