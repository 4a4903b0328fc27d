"""One process at a time works in a folder, and subprocesses that outlive their parent are found and ended.

Work in a folder is claimed by a lock that the system frees when its holder dies, however it dies. Its subprocesses
may outlive it: they carry a mark in their environment, by which the next holder finds and ends them.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "SPHERESCALE_WORKS_IN"  # its value is the folder
START_VARIABLE = "SPHERESCALE_START"  # its value is the same for all starts of one launcher, and for no other


@contextmanager
def claimed(folder: Path) -> Iterator[int | None]:
    """Hold `folder`, which is created if need be: yields its lock's descriptor, or None if another process holds it.

    A subprocess that is passed the descriptor (``pass_fds``) holds the folder too, for as long as it lives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def marked(folder: Path) -> dict[str, str]:
    """The environment of a subprocess that works in `folder`, for `sweep` to find it by."""
    return {**os.environ, VARIABLE: str(folder.resolve())}


def sweep(folder: Path) -> int:
    """Kill every process that still works in `folder`, and wait until all are gone; how many there were."""
    kill = ["sh", "-c", signal_marked("KILL", f"{VARIABLE}={folder.resolve()}")]
    found: set[str] = set()
    while alive := subprocess.run(kill, stdout=subprocess.PIPE, text=True, check=True).stdout.split():
        found |= set(alive)
        time.sleep(0.05)
    return len(found)


def signal_marked(name: str, mark: str, *, ranks_only: bool = False) -> str:
    """A shell command that sends the signal `name` to every process with this mark, and prints their numbers.

    A command, not a call: the processes may be on another host.

    Args:
        name: as ``kill -s`` wants it.
        mark: ``NAME=VALUE``, a variable of their environment, which their subprocesses inherit.
        ranks_only: leave out launchers: processes without a ``RANK``.
    """
    found = f"grep -lszxF -e {shlex.quote(mark)} /proc/[0-9]*/environ"
    ranks = " | xargs -r grep -lsz ^RANK=" if ranks_only else ""
    return f"{found}{ranks} | cut -d/ -f3 | while read pid; do kill -s {name} $pid && echo $pid; done; true"
