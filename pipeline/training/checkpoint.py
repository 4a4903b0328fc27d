"""Checkpoints that any number of ranks and any ZeRO stage can load. A tour:

``RUN/checkpoints/step-00001000/`` holds the state after 1,000 steps, written by ``torch.distributed.checkpoint``:

- ``head.rows`` and ``head.momentum``, [C, D], each rank its own rows as one shard with a global offset, so that
  loading on other ranks is arithmetic on offsets and each reads only what it will own;
- ``backbone.<name>`` and ``momentum.<name>``, whole, once (the ranks share the writing);
- ``meta.json``: the step, the identities' digest and count, and what wrote it.

λ, the learning rate, the order and the mirror flips are functions of the step: nothing else is state.

A checkpoint is complete or absent: it is written as ``step-….partial``, every file synced, then renamed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from cluster.collectives import Group, barrier, rank_in

logger = logging.getLogger(__name__)

# torch would have DTensor, whose shards are all of one size but the last: some rank would own no class, or many fewer.
warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)

FORMAT = 1
_PREFIX = "step-"
_PARTIAL = ".partial"


class CheckpointError(ValueError):
    """A checkpoint that is missing or does not fit; the message is one line for the user."""


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself.

    Attributes:
        step: steps done.
        num_classes, embedding_dim: the head's C and D.
        identities_sha256: digest of the shard set's ``identities.txt``: which class is which person.
        num_ranks: ranks that wrote it (for the reader's information; any number can load it).
        format: version of this layout.
    """

    step: int
    num_classes: int
    embedding_dim: int
    identities_sha256: str
    num_ranks: int
    format: int = FORMAT


@dataclass
class State:
    """The live tensors of a run, saved from and loaded into in place.

    Attributes:
        rows_SD, rows_momentum_SD: this rank's head rows and their momentum.
        first_class: global number of the first of them.
        rows_group: the ranks that share the classes; others hold replicas, of which one is written.
        backbone: parameters and buffers, whole, by name.
        momenta: SGD's momentum by parameter name, whole.
    """

    rows_SD: torch.Tensor
    rows_momentum_SD: torch.Tensor
    first_class: int
    rows_group: Group
    backbone: dict[str, torch.Tensor]
    momenta: dict[str, torch.Tensor]

    def tree(self, meta: Meta) -> dict[str, Any]:
        """The state as torch.distributed.checkpoint takes it. A collective of `rows_group` (sizes of the shards)."""
        sharded = {
            "head.rows": self._sharded(self.rows_SD, meta),
            "head.momentum": self._sharded(self.rows_momentum_SD, meta),
        }
        whole = {f"backbone.{name}": tensor for name, tensor in self.backbone.items()}
        return sharded | whole | {f"momentum.{name}": tensor for name, tensor in self.momenta.items()}

    def _sharded(self, rows: torch.Tensor, meta: Meta) -> Any:
        shard = Shard.from_tensor_and_offsets(rows.detach(), [self.first_class, 0], rank_in(self.rows_group))
        return init_from_local_shards([shard], meta.num_classes, meta.embedding_dim, process_group=self.rows_group)


def path_of(run: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps."""
    return run / "checkpoints" / f"{_PREFIX}{step:08d}"


def complete_steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, rising."""
    folder = run / "checkpoints"
    names = [
        p.name for p in folder.glob(f"{_PREFIX}*") if not p.name.endswith(_PARTIAL) and (p / "meta.json").is_file()
    ]
    return sorted(int(name.removeprefix(_PREFIX)) for name in names)


def read_meta(folder: Path) -> Meta:
    """A checkpoint's own words.

    Raises:
        CheckpointError: when the folder is not a checkpoint of this format.
    """
    try:
        fields = json.loads((folder / "meta.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder}: not a complete checkpoint ({error})") from None
    if fields.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: format: got {fields.get('format')}, wanted {FORMAT}")
    return Meta(**fields)


def save(run: Path, state: State, meta: Meta, group: Group, keep: int) -> float:
    """Write the checkpoint of ``meta.step``; all ranks together. Returns the seconds it took.

    The newest `keep` are kept besides step 0; older ones go only once this one is complete.
    """
    started = time.perf_counter()
    final = path_of(run, meta.step)
    partial = final.with_name(final.name + _PARTIAL)
    if rank_in(group) == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier(group)
    dcp.save(state.tree(meta), storage_writer=FileSystemWriter(partial), process_group=group)
    if rank_in(group) == 0:
        _write_synced(partial / "meta.json", json.dumps(asdict(meta), indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync_folder(final.parent)
        for step in [s for s in complete_steps(run) if s != 0][:-keep]:
            shutil.rmtree(path_of(run, step))
    barrier(group)
    return time.perf_counter() - started


def load(run: Path, step: int, state: State, meta: Meta, group: Group) -> None:
    """Fill `state` from the checkpoint after `step` steps; each rank reads its own rows only.

    Raises:
        CheckpointError: when its classes, size or identities are not those of `meta`.
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
    tree = state.tree(meta)
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    if stored.keys() != tree.keys():
        missing, extra = sorted(tree.keys() - stored.keys()), sorted(stored.keys() - tree.keys())
        raise CheckpointError(
            f"{folder}: another backbone: missing {missing[:3] or 'nothing'}, not wanted {extra[:3] or 'nothing'}"
        )
    dcp.load(tree, storage_reader=FileSystemReader(folder), process_group=group)


def load_backbone(run: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    """The backbone's parameters and buffers after `step` steps (None: the newest), for one process.

    Raises:
        CheckpointError: when there is no such checkpoint, naming those that there are.
    """
    steps = complete_steps(run)
    if not steps or (step is not None and step not in steps):
        raise CheckpointError(
            f"{run}: checkpoint: got step {'last' if step is None else step}, wanted one of {steps or 'none saved yet'}"
        )
    reader = FileSystemReader(path_of(run, steps[-1] if step is None else step))
    stored = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in stored.items()
        if key.startswith("backbone.") and isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        # one process without a group is what is meant here
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {key.removeprefix("backbone."): tensor for key, tensor in tensors.items()}


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
