"""Checkpoints that any number of ranks and any ZeRO stage can load. A tour:

``RUN/checkpoints/step-00001000/`` holds the state after 1,000 steps, in files of the safetensors layout:

- ``rows-<first>-<stop>.safetensors``: ``rows`` [n, D] of the classes [first, stop), and the optimizer's slots of them
  by name (``momentum``), [n, D] or [n]. A rank writes its own classes as several such blocks, so that loading on other
  ranks is arithmetic on ranges, and each rank reads the rows that it will own and no others;
- ``backbone.safetensors``: parameters and buffers (``backbone.<name>``), slots (``<slot>.<name>``) and the margin's
  state (``head.<name>``), whole, once;
- ``meta.json``: the step, the identities' digest and count, the names of the slots, the size and SHA-256 of every
  file, and its own SHA-256.

λ, the learning rate, the order and the mirror flips are functions of the step: nothing else is state. A frozen
parameter has no slots.

A checkpoint is complete or absent: it is written as ``step-….partial``, every file synced, ``meta.json`` last, then
renamed. (`pipeline.run.saver` writes, `pipeline.run.whole` verifies; here is the layout, and reading it.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.files import named
from pipeline.run.folder import RunFolder
from pipeline.run.tensor_file import FileFacts, TensorFile

FORMAT = 3
META = "meta.json"
BACKBONE = "backbone.safetensors"
_DIGEST = "sha256"


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
        shards_sha256: digest of the shard set's manifest, which has every tar's size and digest; empty in a checkpoint
            of before, as are the next three.
        fixed: the recipe's keys that cannot change, with their values.
        threads, device: of rank 0. They, and the number of ranks, decide the last bits of a sum.
        slots: names of what the optimizer keeps; written by the saver.
        files: size and digest of every file beside ``meta.json``; written by the saver.
        format: version of this layout.
    """

    step: int
    num_classes: int
    embedding_dim: int
    identities_sha256: str
    num_ranks: int
    shards_sha256: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None
    device: str = ""
    slots: list[str] = field(default_factory=list)
    files: dict[str, FileFacts] = field(default_factory=dict)
    format: int = FORMAT


@dataclass
class State:
    """The live tensors of a run, saved from and loaded into in place.

    Attributes:
        rows_SD: this rank's head rows.
        row_slots: what the optimizer keeps of them, by the slot's name: [S, D] or [S].
        first_class: global number of the first of the rows.
        backbone: parameters and buffers, whole, by name.
        backbone_slots: what the optimizer keeps of the trained parameters, whole: slot -> parameter -> tensor.
        head_state: state of the margin by name, the same on every rank.
        replica, num_replicas: this rank's place among the ranks that hold the same rows: they share the writing.
    """

    rows_SD: torch.Tensor
    row_slots: dict[str, torch.Tensor]
    first_class: int
    backbone: dict[str, torch.Tensor]
    backbone_slots: dict[str, dict[str, torch.Tensor]]
    head_state: dict[str, torch.Tensor] = field(default_factory=dict)
    replica: int = 0
    num_replicas: int = 1

    def rows_tensors(self, part: slice) -> dict[str, torch.Tensor]:
        """A part of this rank's rows and their slots, live, by the names that they have in a file."""
        return {"rows": self.rows_SD[part]} | {name: slot[part] for name, slot in self.row_slots.items()}

    def whole_tensors(self) -> dict[str, torch.Tensor]:
        """What is saved once for all ranks, live, by the names that it has in the file."""
        tensors = {f"backbone.{name}": tensor for name, tensor in self.backbone.items()}
        for slot, of_parameters in self.backbone_slots.items():
            tensors |= {f"{slot}.{name}": tensor for name, tensor in of_parameters.items()}
        return tensors | {f"head.{name}": tensor for name, tensor in self.head_state.items()}


def _from_format_2(fields: dict[str, Any]) -> dict[str, Any]:
    """Before format 3 the optimizer was SGD, and its momentum had the name that the slot has now."""
    return fields | {"format": 3, "slots": ["momentum"]}


# What makes the ``meta.json`` of the next format of an older one: a run of before is resumed, and read, as it is.
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {2: _from_format_2}


def rows_file(first: int, stop: int) -> str:
    """Name of the file that holds the rows of the classes [first, stop)."""
    return f"rows-{first:010d}-{stop:010d}.safetensors"


def complete_steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, rising."""
    folder = RunFolder(run)
    return [step for step in folder.saved_steps() if (folder.checkpoint(step) / META).is_file()]


def has_reached(run: Path, step: int) -> bool:
    """Whether a run has a complete checkpoint of this step or a later one."""
    return max(complete_steps(run), default=-1) >= step


def encoded(meta: Meta) -> bytes:
    """The bytes of ``meta.json``; the last of its fields is the digest of all others."""
    return _with_digest(asdict(meta))


def read_meta(folder: Path) -> Meta:
    """What a checkpoint says of itself, in this format's terms.

    Raises:
        CheckpointError: when the folder is not a checkpoint of this format or of one that it knows, or any bit of its
            ``meta.json`` is damaged.
    """
    try:
        fields = _fields_of((folder / META).read_bytes())
        found = fields.get("format")
        while (number := fields.get("format")) in _MIGRATIONS:
            fields = _MIGRATIONS[number](fields)
        if number == FORMAT:
            return Meta(**fields | {"files": {name: FileFacts(**facts) for name, facts in fields["files"].items()}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder / META}: not readable ({error})") from None
    known = " or ".join(map(str, [*_MIGRATIONS, FORMAT]))
    raise CheckpointError(f"{folder / META}: format: got {found}, wanted {known}")


def _with_digest(fields: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(fields, indent=2).encode()).hexdigest()
    return (json.dumps(fields | {_DIGEST: digest}, indent=2) + "\n").encode()


def _fields_of(content: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(content)
    # An older checkpoint has no digest. One whose digest lost its name has a field that `Meta` does not know.
    if _DIGEST in fields:
        del fields[_DIGEST]
        if content != _with_digest(fields):
            raise ValueError("damaged: its SHA-256 is another")
    return fields


def load(run: Path, step: int, state: State, meta: Meta) -> None:
    """Fill `state` from the checkpoint after `step` steps: the backbone whole, and of the rows this rank's only.

    Raises:
        CheckpointError: when its classes, size, identities, optimizer or backbone are not those of `meta` and `state`.
        NotWrittenError: when a file cannot be read. Whoever loads has verified it just before: it may be read later.
    """
    folder = RunFolder(run).checkpoint(step)
    saved, meta = read_meta(folder), replace(meta, slots=list(state.row_slots))
    for key, why in (
        ("num_classes", "other shards"),
        ("embedding_dim", "another backbone.embedding_dim"),
        ("identities_sha256", "the shards name other identities"),
        ("slots", "another optimizer"),
    ):
        got, wanted = getattr(meta, key), getattr(saved, key)
        if got != wanted:
            raise CheckpointError(f"{folder}: {key}: got {got}, wanted {wanted} as saved: {why}; start another run")
    try:
        with named(folder, "not read"):
            _load_backbone(folder, state)
            _load_rows(folder, saved, state)
    except CheckpointError:
        raise
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _load_backbone(folder: Path, state: State) -> None:
    wanted = state.whole_tensors()
    with TensorFile(folder / BACKBONE) as file:
        _require_names(folder, wanted.keys(), set(file.names) - _slots_of_frozen(state))
        for name, tensor in wanted.items():
            saved = file.read(name)
            if saved.shape != tensor.shape:
                raise CheckpointError(
                    f"{folder}: {_kind(name)}: {name}: got {list(tensor.shape)}, wanted {list(saved.shape)} as saved"
                )
            tensor.copy_(saved)


def _slots_of_frozen(state: State) -> set[str]:
    """Names of slots that frozen parameters would have: ZeRO 0 saved them in format 2, and one may be frozen since."""
    names: set[str] = set()
    for slot, trained in state.backbone_slots.items():
        names.update(f"{slot}.{name}" for name in state.backbone.keys() - trained)
    return names


def _require_names(folder: Path, wanted: Set[str], saved: Set[str]) -> None:
    missing, extra = sorted(wanted - saved), sorted(saved - wanted)
    if missing or extra:
        raise CheckpointError(
            f"{folder}: {_kind((missing or extra)[0])}: missing {missing[:3] or 'nothing'}, "
            f"not wanted {extra[:3] or 'nothing'}"
        )


def _kind(name: str) -> str:
    return "another margin" if name.startswith("head.") else "another backbone"


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
            for tensor_name, tensor in state.rows_tensors(here).items():
                tensor.copy_(file.read(tensor_name, there))
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


def read_backbone(folder: Path) -> dict[str, torch.Tensor]:
    """The backbone's parameters and buffers, for one process. `pipeline.run.whole` says whether they are whole.

    Raises:
        CheckpointError: when the file cannot be read.
    """
    prefix = "backbone."
    try:
        with TensorFile(folder / BACKBONE) as file:
            return {name.removeprefix(prefix): file.read(name) for name in file.names if name.startswith(prefix)}
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / BACKBONE}: {error}") from None
