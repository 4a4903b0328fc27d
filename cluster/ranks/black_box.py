"""What every rank was at when a run hung, in the run's folder: its stacks, and the last collectives it entered.

A rank whose interpreter runs writes its own. One that is frozen, or holds the interpreter's lock in some library,
cannot: another rank of its host reads its memory, with py-spy, which needs the right to trace processes (root, or the
same user where the kernel's Yama allows it). If there is no other, a timer below Python still writes to standard error.

The collectives are those of torch's flight recorder, a pickle for ``torchfrtrace``: tested with gloo, not with NCCL.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

# For what is written at the end; a process that is still there after it ends without.
_PATIENCE_SECONDS = 20.0

# Entries of torch's flight recorder, the last ones: some steps.
_COLLECTIVES = "2000"


def record_collectives() -> None:
    """Let torch record every rank's last collectives; before the process group is made."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _COLLECTIVES)


class BlackBox:
    """Files of one rank in a folder, which are made when there is something to write: a disk is not kept busy by them.

    Whatever the disk refuses is left out: what is written is about a run that ends anyway.

    Args:
        folder: ``stacks/`` of the run.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank

    def arm(self, seconds: float) -> None:
        """Print the stacks in so many seconds, unless this or `close` is called before, whatever Python does then."""
        faulthandler.dump_traceback_later(seconds)

    def write(self, why: str) -> None:
        """Write this rank's stacks, headed by time and reason, and its collectives. For a process that ends."""
        faulthandler.dump_traceback_later(_PATIENCE_SECONDS, exit=True)
        with contextlib.suppress(OSError), self._stacks_of(self._rank) as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {why}\n")
            faulthandler.dump_traceback(file, all_threads=True)
        if dump := _recorder():
            with contextlib.suppress(OSError, RuntimeError):
                (self._folder / f"rank-{self._rank}.collectives").write_bytes(dump())

    def write_other(self, rank: int, process: int) -> None:
        """Write the stacks of another rank on this host, a process that does not answer."""
        program = spy()
        if program is None:
            return
        # Not stopped for it: it may be where it cannot be stopped.
        command = [program, "dump", "--nonblocking", "--pid", str(process)]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired), self._stacks_of(rank) as file:
            subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=_PATIENCE_SECONDS, check=False)

    def close(self) -> None:
        """Disarm."""
        faulthandler.cancel_dump_traceback_later()

    def _stacks_of(self, rank: int) -> TextIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        return (self._folder / f"rank-{rank}.txt").open("a")


def spy() -> str | None:
    """The program py-spy, of this interpreter's environment or else of the system; None if there is none."""
    own = Path(sys.executable).with_name("py-spy")
    return str(own) if own.exists() else shutil.which("py-spy")


def _recorder() -> Callable[[], bytes] | None:
    """What dumps torch's flight recorder: NCCL's where there is NCCL."""
    c10d = torch._C._distributed_c10d
    dump = getattr(c10d, "_dump_nccl_trace" if torch.cuda.is_available() else "_dump_fr_trace", None)
    # Without the stack of each: to put names to those takes torch up to two seconds, for which the restart would wait.
    return dump and partial(dump, includeCollectives=True, includeStackTraces=False)
