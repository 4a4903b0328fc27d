"""Saves in the background: the loop stops for a copy, a thread writes it, and all ranks learn the outcome.

What the thread does, on every rank: write the rank's own files into ``step-….partial`` and sync them; exchange digests
and errors; if no rank failed, rank 0 writes ``meta.json``, renames the folder and drops old checkpoints; exchange the
outcome of that. Whatever fails, training continues, earlier checkpoints stay, and every rank holds the same reason.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cluster.ranks.collectives import Group, barrier, gather_objects, rank_in
from pipeline.files import named, sync, write_file
from pipeline.run.checkpoint import (
    BACKBONE,
    META,
    CheckpointError,
    Meta,
    State,
    complete_steps,
    encoded,
    rows_file,
)
from pipeline.run.folder import RunFolder
from pipeline.run.retention import discard, drop_superseded, put_in_place, sweep
from pipeline.run.tensor_file import FileFacts, write_tensors
from pipeline.run.whole import damage_at_sight

logger = logging.getLogger(__name__)

# A file of rows is about this large: blocks enough that any number of ranks can share the checking of a checkpoint.
BLOCK_BYTES = 1 << 28


@dataclass(frozen=True)
class Saved:
    """How a save ended, the same on every rank.

    Attributes:
        step: of the checkpoint.
        seconds: from its start until it was complete or failed.
        error: why there is no such checkpoint; None after success.
        bytes: of its files, all ranks' together; 0 after a failure.
    """

    step: int
    seconds: float
    error: str | None
    bytes: int = 0


class Saver:
    """Writes the checkpoints of a run, one at a time, in the background.

    Args:
        run: the run's folder.
        group: all ranks, in a CPU group that only saves use: a save's exchanges run beside the loop's.
        keep: the newest checkpoints kept, besides step 0.
        keep_every: checkpoints of multiples of this step are kept for good; None: of none.

    Attributes:
        patience: a context that the loop is in while it waits, named by what for (``"a save"``): the wait is as long as
            the disk takes.
    """

    def __init__(self, run: Path, group: Group, keep: int, keep_every: int | None = None) -> None:
        self._run, self._folder, self._group = run, RunFolder(run), group
        self._keep, self._keep_every = keep, keep_every
        self._copies: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._saved: Saved | None = None
        self.patience: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext
        self._doubted: set[int] = set()
        if rank_in(group) == 0:
            sweep(run)
        barrier(group)

    def resumed(self, step: int) -> None:
        """Note that the run resumes from this checkpoint: later ones are damaged, and do not count as kept ones."""
        self._doubted = {later for later in self._folder.saved_steps() if later > step}

    def newest(self) -> int | None:
        """The step that the run would resume from after a crash now; None: it would start over."""
        return max((step for step in complete_steps(self._run) if step not in self._doubted), default=None)

    def begin(self, state: State, meta: Meta, *, drops: bool = True) -> float:
        """Copy the state out and start to write it; returns the seconds that the caller was held up.

        All ranks together. Waits for the save before, if that is still being written. Unless it `drops`, every earlier
        checkpoint stays.
        """
        started = time.perf_counter()
        self.wait()
        files, meta = self._copy_out(state), replace(meta, slots=list(state.row_slots))
        self._thread = threading.Thread(target=self._write, args=(files, meta, drops), name="saver", daemon=True)
        self._thread.start()
        return time.perf_counter() - started

    def poll(self) -> Saved | None:
        """How the save under way ended, once; None while it is being written. Does not wait."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread, saved = None, self._saved
        return saved

    def wait(self) -> None:
        """Wait for the save under way, whose outcome is left for `poll`."""
        if self._thread is not None:
            with self.patience("a save"):
                self._thread.join()

    def finish(self) -> Saved | None:
        """Wait for the save under way, and say how it ended; None if there was none."""
        self.wait()
        return self.poll()

    def _copy_out(self, state: State) -> dict[str, dict[str, torch.Tensor]]:
        """Copies on the host of what this rank writes: name of a file -> tensors. Memory is reused by the next save."""
        live = own_files(state, rank_in(self._group) == 0)
        cuda = state.rows_SD.is_cuda
        copies: dict[str, dict[str, torch.Tensor]] = {}
        for file, tensors in live.items():
            copies[file] = {}
            for name, tensor in tensors.items():
                key = f"{file}/{name}"
                if key not in self._copies:
                    self._copies[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=cuda)
                copies[file][name] = self._copies[key].copy_(tensor.detach(), non_blocking=True)
        if cuda:
            torch.cuda.synchronize()
        return copies

    def _write(self, files: dict[str, dict[str, torch.Tensor]], meta: Meta, drops: bool) -> None:
        started = time.perf_counter()
        try:
            size, error = self._write_together(files, meta, drops)
        except Exception as lost:  # a rank is gone: the loop will find that out too
            size, error = 0, f"lost the other ranks in mid-save: {lost}"
        self._saved = Saved(meta.step, time.perf_counter() - started, error, size)

    def _write_together(
        self, files: dict[str, dict[str, torch.Tensor]], meta: Meta, drops: bool
    ) -> tuple[int, str | None]:
        partial = self._folder.partial(meta.step)
        facts: dict[str, FileFacts] = {}
        error = self._attempt(lambda: facts.update(_write_files(partial, files)))
        answers = gather_objects((facts, error), self._group)
        errors = [text for _, text in answers if text]
        written: dict[str, FileFacts] = {}
        for of_rank, _ in answers:
            written |= of_rank
        first = rank_in(self._group) == 0
        if not errors and first:
            error = self._attempt(lambda: self._commit(partial, replace(meta, files=written), drops))
        if not errors:
            errors = [text for text in gather_objects(error, self._group) if text]
        if errors and first:
            with contextlib.suppress(OSError):
                discard(partial)
        if errors:
            return 0, "; ".join(errors)
        return sum(fact.bytes for fact in written.values()), None

    def _attempt(self, work: Callable[[], object]) -> str | None:
        """None, or why it failed: anything at all, since the other ranks wait for an answer."""
        try:
            work()
        except Exception as error:
            return f"rank {rank_in(self._group)} on {socket.gethostname()}: {error}"
        return None

    def _commit(self, partial: Path, meta: Meta, drops: bool) -> None:
        """Make the written files a checkpoint, then drop those that are no longer kept."""
        write_file(partial / META, encoded(meta))
        if missing := damage_at_sight(partial):
            raise CheckpointError(f"{missing[0]}, as another rank has written; wanted one folder that all hosts share")
        # From here on the folder is whole, and `sweep` would finish what a kill interrupts.
        put_in_place(partial, self._folder.checkpoint(meta.step))
        self._doubted.discard(meta.step)
        if drops:
            drop_superseded(self._run, meta.step, self._keep, self._keep_every, self._doubted)


def own_files(state: State, writes_backbone: bool) -> dict[str, dict[str, torch.Tensor]]:
    """What this rank writes: name of a file -> its tensors. Together the ranks write everything once."""
    files: dict[str, dict[str, torch.Tensor]] = {}
    rows = state.rows_SD.shape[0]
    row_bytes = sum(tensor.nbytes for tensor in state.rows_tensors(slice(0, 1)).values())
    block = max(1, BLOCK_BYTES // row_bytes)
    for number, start in enumerate(range(0, rows, block)):
        if number % state.num_replicas == state.replica:
            part = slice(start, min(start + block, rows))
            name = rows_file(state.first_class + part.start, state.first_class + part.stop)
            files[name] = state.rows_tensors(part)
    if writes_backbone:
        files[BACKBONE] = state.whole_tensors()
    return files


def _write_files(folder: Path, files: dict[str, dict[str, torch.Tensor]]) -> dict[str, FileFacts]:
    with named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    facts = {name: write_tensors(folder / name, tensors) for name, tensors in files.items()}
    sync(folder)
    return facts
