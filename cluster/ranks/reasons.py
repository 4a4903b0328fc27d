"""Why ranks end, said once on each host: most reasons are those of all its ranks, and some are one rank's alone."""

from __future__ import annotations

import hashlib
import socket
import time

import torch.distributed as dist

from cluster.ranks.topology import Topology
from cluster.stop import tell


class Reasons:
    """Prints why this rank ends, unless another rank of its host prints the same.

    Args:
        command: what a line begins with.
        topology: this rank's place.
    """

    def __init__(self, command: str, topology: Topology) -> None:
        self._command, self._topology = command, topology
        self._store: dist.Store | None = None

    def met(self, store: dist.Store) -> None:
        """From here on a rank may have a reason of its own, such as a file that it alone reads."""
        self._store = store

    def say(self, reason: str) -> None:
        """Print it, or wait a little: as soon as one rank has ended, launchers end those that are left."""
        if self._is_first(reason):
            several = self._topology.num_ranks > self._topology.ranks_of_node
            where = f" on {socket.gethostname()}" if several else ""
            tell(f"{self._command}{where}: {reason}")
        else:
            time.sleep(1)

    def _is_first(self, reason: str) -> bool:
        if self._store is not None:
            said = f"{socket.gethostname()} {hashlib.sha256(reason.encode()).hexdigest()}"
            try:
                return self._store.add(f"said/{said}", 1) == 1
            except RuntimeError:  # rank 0 has ended, and the store with it: the reason is that of all ranks
                pass
        return self._topology.rank_of_node == 0
