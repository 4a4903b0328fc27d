"""The ranks of one start, over the agents of its hosts: their places, which have ended and how, and which failed."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from cluster.marks import ATTEMPT_VARIABLE
from cluster.ranks.topology import Topology
from cluster.start_ranks import most_severe
from cluster.stop import EXIT_LOST, EXIT_STOPPED
from cluster.supervision.connection import Connection


class Start:
    """The ranks of one start, over the agents of their hosts.

    Args:
        connections: of each host that takes part.
        ranks: of each host, numbered in this order.
    """

    def __init__(self, connections: Mapping[str, Connection], ranks: Mapping[str, int]) -> None:
        self._connections, self._ranks = connections, ranks
        self._killed: dict[tuple[str, int], int] | None = None

    def begin(self, address: str, port: int, attempt: int) -> None:
        """Start them; they meet at the port of the first host's address."""
        total, first = sum(self._ranks.values()), 0
        names = ",".join(host for host, count in self._ranks.items() for _ in range(count))
        shared = {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
        shared |= {"SPHERESCALE_HOSTS": names, ATTEMPT_VARIABLE: str(attempt)}
        for host, count in self._ranks.items():
            places = [Topology(first + number, total, number, count) for number in range(count)]
            self._connections[host].start([shared | place.to_environment() for place in places])
            first += count

    @property
    def codes(self) -> dict[tuple[str, int], int]:
        """Exit codes by host and rank of host; of a host that is lost, those of its ranks that had not ended."""
        found = {}
        for host, connection in self._connections.items():
            known = dict(connection.codes)
            if connection.is_lost:
                known = dict.fromkeys(range(self._ranks[host]), EXIT_LOST) | known
            found.update({(host, number): code for number, code in known.items()})
        return found

    @property
    def left(self) -> bool:
        """Whether ranks are running on hosts that are there."""
        return len(self.codes) < sum(self._ranks.values())

    @property
    def failed(self) -> str:
        """The ranks that failed, on hosts that are there, in words; empty if none has."""
        words = []
        for (host, number), code in self.codes.items():
            if code not in (0, EXIT_STOPPED) and not self._connections[host].is_lost:
                how = f"ended with code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
                words.append(f"rank {number} of {host} {how}")
        return ", ".join(words)

    @property
    def code(self) -> int:
        """The most severe code; of ranks that were killed here none counts."""
        codes = self.codes if self._killed is None else self._killed
        return most_severe(list(codes.values()) or [EXIT_LOST])

    def signal(self, name: str) -> None:
        """Send the signal to all ranks."""
        for connection in self._connections.values():
            connection.signal(name)

    def kill(self) -> None:
        """Kill those that are left."""
        self._killed = self.codes
        self.signal("SIGKILL")

    def cut_off(self) -> None:
        """Leave agents whose ranks cannot even be killed: the next one on such a host waits until they can."""
        for host, connection in self._connections.items():
            if len(connection.codes) < self._ranks[host]:
                connection.close()
