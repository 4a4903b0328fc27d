"""One process at a time in a folder, and nothing at work in it that an earlier one left behind.

Work in a folder is claimed by a lock that the system frees when its holder dies, however it dies. Its subprocesses
may outlive it: they carry the folder's name in their environment, by which the next holder finds and ends them.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.marks import tell

VARIABLE = "SPHERESCALE_WORKS_IN"  # whose value is the folder


@contextmanager
def claimed(folder: Path) -> Iterator[int | None]:
    """Hold `folder`, which is made if need be: yields its lock's descriptor, or None where another process holds it.

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
    """Kill what still works in `folder`, and wait until it is gone; how many processes there were."""
    kill = ["sh", "-c", tell("KILL", f"{VARIABLE}={folder.resolve()}")]
    found: set[str] = set()
    while alive := subprocess.run(kill, stdout=subprocess.PIPE, text=True, check=True).stdout.split():
        found |= set(alive)
        time.sleep(0.05)
    return len(found)
