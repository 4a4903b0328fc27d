"""Ports for what tests start: free, each handed out once, and never one that an outgoing connection may take."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator

# Below the range from which Linux takes the ports of outgoing connections (32768 and up), and below the batch file's
# (20000 and up): between a port's choice and its use, which are seconds apart, nothing else takes it.
LOWEST, HIGHEST = 10_000, 20_000


def _ports() -> Iterator[int]:
    """Every port of the range once, in an order of this process's own: test processes run side by side."""
    yield from random.Random(os.getpid()).sample(range(LOWEST, HIGHEST), HIGHEST - LOWEST)


_unused = _ports()


def free_port() -> int:
    """A port that nothing listens on, and that this process has not handed out before."""
    for port in _unused:
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
    raise RuntimeError(f"got no free port, wanted one of {LOWEST} to {HIGHEST - 1}")
