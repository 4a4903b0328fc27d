"""Subprocesses that outlive their parent are found and ended: they carry a mark in their environment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

VARIABLE = "SPHERESCALE_WORKS_IN"  # its value is the folder
START_VARIABLE = "SPHERESCALE_START"  # its value is the same for all starts of one launcher, and for no other
AGENT_VARIABLE = "SPHERESCALE_AGENT"  # its value is the same for all agents of one launcher on one host
ATTEMPT_VARIABLE = "SPHERESCALE_ATTEMPT"  # its value is the number of the start among those


def marked(folder: Path) -> dict[str, str]:
    """The environment of a subprocess that works in `folder`, for `sweep` to find it by."""
    return {**os.environ, VARIABLE: str(folder.resolve())}


def sweep(folder: Path) -> int:
    """Kill every process that still works in `folder`, and wait until all are gone; how many there were."""
    return kill_marked(f"{VARIABLE}={folder.resolve()}")


def kill_marked(mark: str) -> int:
    """Kill every other process of this host that was started with this mark, wait for them; how many there were.

    Args:
        mark: ``NAME=VALUE``, a variable of their environment, which their subprocesses inherit.
    """
    found: set[int] = set()
    while alive := _with(mark):
        found |= alive
        for process in alive:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    return len(found)


def _with(mark: str) -> set[int]:
    found = set()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = environment.read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            continue
        if mark.encode() in variables:
            found.add(int(environment.parent.name))
    return found - {os.getpid()}
