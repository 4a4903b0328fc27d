"""Checkpoints that any number of ranks and any ZeRO stage can load. A tour:

``RUN/checkpoints/step-00001000/`` holds the state after 1,000 steps, in files of the safetensors layout:

- ``rows-<first>-<stop>.safetensors``: ``rows`` and ``momentum`` [n, D] of the classes [first, stop). A rank writes its
  own classes as several such blocks, so that loading on other ranks is arithmetic on ranges, and each rank reads the
  rows that it will own and no others;
- ``backbone.safetensors``: parameters and buffers (``backbone.<name>``) and momenta (``momentum.<name>``), whole, once;
- ``meta.json``: the step, the identities' digest and count, and the size and SHA-256 of every file.

λ, the learning rate, the order and the mirror flips are functions of the step: nothing else is state.

A checkpoint is complete or absent: it is written as ``step-….partial``, every file synced, ``meta.json`` last, then
renamed. (`pipeline.run.saver` writes; here is the layout, and reading it.)
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cluster.collectives import Group, gather_objects, num_ranks, rank_in
from pipeline.run.tensor_file import FileFacts, TensorFile, file_facts

logger = logging.getLogger(__name__)

FORMAT = 2
PARTIAL = ".partial"
BACKBONE = "backbone.safetensors"
_PREFIX = "step-"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, cannot be written or does not fit; the message is for the user."""


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself.

    Attributes:
        step: steps done.
        num_classes, embedding_dim: the head's C and D.
        identities_sha256: digest of the shard set's ``identities.txt``: which class is which person.
        num_ranks: ranks that wrote it (for the reader's information; any number can load it).
        files: size and digest of every file beside ``meta.json``.
        format: version of this layout.
    """

    step: int
    num_classes: int
    embedding_dim: int
    identities_sha256: str
    num_ranks: int
    files: dict[str, FileFacts] = field(default_factory=dict)
    format: int = FORMAT


@dataclass
class State:
    """The live tensors of a run, saved from and loaded into in place.

    Attributes:
        rows_SD, rows_momentum_SD: this rank's head rows and their momentum.
        first_class: global number of the first of them.
        backbone: parameters and buffers, whole, by name.
        momenta: SGD's momentum by parameter name, whole.
        replica, num_replicas: this rank's place among the ranks that hold the same rows: they share the writing.
    """

    rows_SD: torch.Tensor
    rows_momentum_SD: torch.Tensor
    first_class: int
    backbone: dict[str, torch.Tensor]
    momenta: dict[str, torch.Tensor]
    replica: int = 0
    num_replicas: int = 1


def path_of(run: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps."""
    return run / "checkpoints" / f"{_PREFIX}{step:08d}"


def rows_file(first: int, stop: int) -> str:
    """Name of the file that holds the rows of the classes [first, stop)."""
    return f"rows-{first:010d}-{stop:010d}.safetensors"


def complete_steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, rising."""
    folders = (run / "checkpoints").glob(f"{_PREFIX}*")
    names = [p.name for p in folders if not p.name.endswith(PARTIAL) and (p / "meta.json").is_file()]
    return sorted(int(name.removeprefix(_PREFIX)) for name in names)


def has_reached(run: Path, step: int) -> bool:
    """Whether a run has a complete checkpoint of this step or a later one."""
    return max(complete_steps(run), default=-1) >= step


def read_meta(folder: Path) -> Meta:
    """A checkpoint's own words.

    Raises:
        CheckpointError: when the folder is not a checkpoint of this format.
    """
    try:
        fields = json.loads((folder / "meta.json").read_text())
        found = fields.get("format")
        if found == FORMAT:
            return Meta(**fields | {"files": {name: FileFacts(**facts) for name, facts in fields["files"].items()}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'meta.json'}: not readable ({error})") from None
    raise CheckpointError(f"{folder / 'meta.json'}: format: got {found}, wanted {FORMAT}")


def newest_whole(run: Path, group: Group) -> int | None:
    """The step of the newest checkpoint whose files are all what they were when written; None where there is none.

    All ranks together; each reads its share of the files once. A damaged checkpoint is told and passed over.

    Raises:
        CheckpointError: when there are checkpoints, and none is whole; when ranks see other folders.
    """
    seen = gather_objects((socket.gethostname(), complete_steps(run)), group)
    steps = seen[0][1]
    for rank, (host, other) in enumerate(seen):
        # (A network file system may show a host its folder of a minute ago: the lists need not be equal.)
        if (other or steps) and not set(other) & set(steps):
            raise CheckpointError(
                f"{run.absolute()}: rank {rank} on {host} sees checkpoints {other}, rank 0 on {seen[0][0]} sees "
                f"{steps}; wanted one folder that all hosts share"
            )
    for step in reversed(steps):
        mine = damage(path_of(run, step), rank_in(group), num_ranks(group))
        found = sorted({fault for faults in gather_objects(mine, group) for fault in faults})
        if not found:
            return step
        if rank_in(group) == 0:
            for fault in found:
                logger.warning("%s: passed over for the one before", fault)
    if steps:
        raise CheckpointError(f"{run}: checkpoints: got {steps}, all of them damaged, wanted one whole")
    return None


def damage(folder: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with a checkpoint's files, one line each; digests of the `part`-th of `parts` shares of them."""
    try:
        meta = read_meta(folder)
    except CheckpointError as error:
        return [str(error)]
    faults = []
    for number, (name, wanted) in enumerate(sorted(meta.files.items())):
        try:
            # a size costs nothing to look at: every rank looks at all of them
            size = (folder / name).stat().st_size
            if size != wanted.bytes:
                faults.append(f"{folder / name}: got {size} bytes, wanted {wanted.bytes}")
            elif number % parts == part and (got := file_facts(folder / name)) != wanted:
                faults.append(f"{folder / name}: damaged: got SHA-256 {got.sha256[:12]}…, wanted {wanted.sha256[:12]}…")
        except OSError as error:
            faults.append(f"{folder / name}: {error.strerror}")
    return faults


def load(run: Path, step: int, state: State, meta: Meta) -> None:
    """Fill `state` from the checkpoint after `step` steps: the backbone whole, and of the rows this rank's only.

    Raises:
        CheckpointError: when its classes, size, identities or backbone are not those of `meta` and `state`.
    """
    folder = path_of(run, step)
    saved = read_meta(folder)
    for key, why in (
        ("num_classes", "other shards"),
        ("embedding_dim", "another backbone.embedding_dim"),
        ("identities_sha256", "the shards name other identities"),
    ):
        got, wanted = getattr(meta, key), getattr(saved, key)
        if got != wanted:
            raise CheckpointError(f"{folder}: {key}: got {got}, wanted {wanted} as saved: {why}; start another run")
    try:
        _load_backbone(folder, state)
        _load_rows(folder, saved, state)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _load_backbone(folder: Path, state: State) -> None:
    wanted = {f"backbone.{name}": tensor for name, tensor in state.backbone.items()}
    wanted |= {f"momentum.{name}": tensor for name, tensor in state.momenta.items()}
    with TensorFile(folder / BACKBONE) as file:
        missing, extra = sorted(wanted.keys() - set(file.names)), sorted(set(file.names) - wanted.keys())
        if missing or extra:
            raise CheckpointError(
                f"{folder}: another backbone: missing {missing[:3] or 'nothing'}, not wanted {extra[:3] or 'nothing'}"
            )
        for name, tensor in wanted.items():
            saved = file.read(name)
            if saved.shape != tensor.shape:
                raise CheckpointError(
                    f"{folder}: another backbone: {name}: got {list(tensor.shape)}, wanted {list(saved.shape)} as saved"
                )
            tensor.copy_(saved)


@torch.no_grad()
def _load_rows(folder: Path, saved: Meta, state: State) -> None:
    mine = range(state.first_class, state.first_class + state.rows_SD.shape[0])
    found = 0
    for name in saved.files:
        if name == BACKBONE:
            continue
        block = range(*map(int, Path(name).stem.split("-")[1:]))
        both = range(max(mine.start, block.start), min(mine.stop, block.stop))
        if not both:
            continue
        here = slice(both.start - mine.start, both.stop - mine.start)
        there = slice(both.start - block.start, both.stop - block.start)
        with TensorFile(folder / name) as file:
            state.rows_SD[here].copy_(file.read("rows", there))
            state.rows_momentum_SD[here].copy_(file.read("momentum", there))
        found += len(both)
    if found != len(mine):
        raise CheckpointError(f"{folder}: got rows of {found} of the classes [{mine.start}, {mine.stop}), wanted all")


def read_rows(folder: Path, classes: range) -> Iterator[tuple[int, torch.Tensor]]:
    """The head's rows of `classes`, file by file: number of the first class, rows [n, D].

    Raises:
        CheckpointError: when the checkpoint cannot be read.
    """
    for name in read_meta(folder).files:
        if name == BACKBONE:
            continue
        block = range(*map(int, Path(name).stem.split("-")[1:]))
        both = range(max(classes.start, block.start), min(classes.stop, block.stop))
        if both:
            try:
                with TensorFile(folder / name) as file:
                    yield both.start, file.read("rows", slice(both.start - block.start, both.stop - block.start))
            except (OSError, ValueError, KeyError) as error:
                raise CheckpointError(f"{folder / name}: {error}") from None


def load_backbone(run: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    """The backbone's parameters and buffers after `step` steps (None: the newest), for one process.

    Raises:
        CheckpointError: when there is no such checkpoint, naming those that there are, or it cannot be read.
    """
    steps = complete_steps(run)
    if not steps or (step is not None and step not in steps):
        raise CheckpointError(
            f"{run}: checkpoint: got step {'last' if step is None else step}, wanted one of {steps or 'none saved yet'}"
        )
    folder = path_of(run, steps[-1] if step is None else step)
    read_meta(folder)
    tensors: dict[str, Any] = {}
    try:
        with TensorFile(folder / BACKBONE) as file:
            for name in file.names:
                if name.startswith("backbone."):
                    tensors[name.removeprefix("backbone.")] = file.read(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / BACKBONE}: {error}") from None
    return tensors
