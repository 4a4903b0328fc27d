"""One process at a time in a folder, and nothing at work in it that an earlier one left behind.

Work in a folder is claimed by a lock that the system frees when its holder dies, however it dies. Its subprocesses
may outlive it: they carry the folder's name in their environment, by which the next holder finds and ends them.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "SPHERESCALE_WORKS_IN"


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
    found: set[int] = set()
    while alive := _at_work(folder):
        for process in alive:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue  # gone meanwhile
        found |= alive
        time.sleep(0.05)
    return len(found)


def _at_work(folder: Path) -> set[int]:
    mark = f"{VARIABLE}={folder.resolve()}".encode()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # gone, or another user's
        if mark in environment:  # a zombie's is empty
            found.add(int(process.name))
    return found - {os.getpid()}
