"""Processes that may outlive whoever started them are found again by a mark in their environment, on any host."""

from __future__ import annotations

import shlex


def tell(name: str, mark: str, *, ranks_only: bool = False) -> str:
    """A shell command that sends the signal `name` to every process marked so, and prints their numbers.

    Args:
        name: as ``kill -s`` wants it.
        mark: ``NAME=VALUE``, a variable of their environment, which their subprocesses inherit.
        ranks_only: leave out launchers: those without a ``RANK``.
    """
    marked = f"grep -lszxF -e {shlex.quote(mark)} /proc/[0-9]*/environ"
    ranks = " | xargs -r grep -lsz ^RANK=" if ranks_only else ""
    return f"{marked}{ranks} | cut -d/ -f3 | while read pid; do kill -s {name} $pid && echo $pid; done; true"
