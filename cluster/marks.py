"""Subprocesses that outlive their parent are found and ended: they carry a mark in their environment."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

VARIABLE = "SPHERESCALE_WORKS_IN"  # its value is the folder
START_VARIABLE = "SPHERESCALE_START"  # its value is the same for all starts of one launcher, and for no other


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
