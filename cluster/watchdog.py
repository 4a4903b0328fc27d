"""A run that stands still says who is missing, and ends.

Every rank's watchdog writes a beat into the run's store each second: how far its main thread is. Where the main thread
gets no further within the limit, as in a collective that another rank never enters, the watchdog prints who is silent
(host lost, process frozen) or behind, then this rank's stacks, and ends the process: the launcher ends the others.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

import torch.distributed as dist

from cluster.rendezvous import host_at
from cluster.stop import EXIT_LOST, leave
from cluster.stopwatch import STEP
from cluster.topology import Topology

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0
# A rank without a beat for this long is silent.
_SILENT_SECONDS = 4 * _BEAT_SECONDS


@dataclass
class _Peer:
    """What a rank last said, and when this rank saw it say something new."""

    said: bytes
    seen_at: float


class Watchdog:
    """Watches this rank's main thread while it trains, as a context.

    Args:
        store: of the run, shared by all ranks.
        topology: who this is.
        limit_seconds: the longest that one step, with its collectives, may take.
    """

    def __init__(self, store: dist.Store, topology: Topology, limit_seconds: float) -> None:
        # The loop and other threads use the store as well: a connection of its own never waits for theirs.
        self._store = store.clone() if hasattr(store, "clone") else store
        self._topology, self._limit = topology, limit_seconds
        self._step, self._moved_at, self._at_work_on = 0, time.monotonic(), ""
        self._answered_at = time.monotonic()
        others = [rank for rank in range(topology.num_ranks) if rank != topology.rank]
        self._hosts = {rank: host_at(store, rank) for rank in others}
        # A rank that never says anything has been silent since this one began to listen.
        self._peers = {rank: _Peer(b"", time.monotonic()) for rank in others}
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"watchdog {work.__name__}", daemon=True)
            for work in (self._beat, self._judge)
        ]

    def __enter__(self) -> Watchdog:
        self._moved_at = self._answered_at = time.monotonic()
        for peer in self._peers.values():
            peer.seen_at = self._moved_at
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()

    def tick(self, step: int) -> None:
        """The main thread has done `step` steps: the limit counts from here again."""
        self._step, self._moved_at = step, time.monotonic()

    @contextlib.contextmanager
    def patient(self, what: str) -> Iterator[None]:
        """Work that is no step, of whatever length, such as ``"a save"``: within, only a silent rank ends the process.

        Rank 0 says each time that the limit has passed again.
        """
        around, self._at_work_on = self._at_work_on, what
        try:
            yield
        finally:
            self._at_work_on = around
            self.tick(self._step)

    def missing(self) -> str:
        """Who is silent or behind, in words; empty when all speak and stand where this rank stands."""
        now = time.monotonic()
        if now - self._answered_at > _SILENT_SECONDS and self._topology.rank != 0:
            return (
                f"silent: rank 0 on {self._hosts[0]}, which keeps the store (no answer for "
                f"{now - self._answered_at:.0f} s)"
            )
        silent = [rank for rank, peer in self._peers.items() if now - peer.seen_at > _SILENT_SECONDS]
        if silent:
            return "silent: " + ", ".join(
                f"rank {rank} on {self._hosts[rank]} (no sign of life for {now - self._peers[rank].seen_at:.0f} s)"
                for rank in silent
            )
        places = {rank: json.loads(peer.said) for rank, peer in self._peers.items() if peer.said}
        behind = [rank for rank, place in places.items() if place["marks"] < STEP.marks]
        return ", ".join(
            f"behind: rank {rank} on {self._hosts[rank]} stands in step {places[rank]['step']}, {places[rank]['part']}"
            for rank in behind
        )

    def explain(self, what: str) -> str:
        """`what` happened here and who is missing, waiting until those that are gone have been silent long enough."""
        waited_until = time.monotonic() + _SILENT_SECONDS + 2 * _BEAT_SECONDS
        while not (missing := self.missing()).startswith("silent") and time.monotonic() < waited_until:
            time.sleep(0.1)
        here = f"rank {self._topology.rank} on {socket.gethostname()}"
        return f"{here}: {what} in step {self._step + 1}; {missing or 'every rank speaks'}"

    def _beat(self) -> None:
        """Write this rank's place and read the others'. Blocks for as long as the store does."""
        number = 0
        while not self._over.wait(_BEAT_SECONDS):
            number += 1
            place = {
                "beat": number,
                "step": self._step + 1,
                "part": STEP.current or "between parts",
                "marks": STEP.marks,
            }
            with contextlib.suppress(RuntimeError):  # the store is gone: `missing` sees that it does not answer
                self._store.set(f"beat/{self._topology.rank}", json.dumps(place))
                for rank, peer in self._peers.items():
                    said = self._store.get(f"beat/{rank}") if self._store.check([f"beat/{rank}"]) else b""
                    if said != peer.said:
                        peer.said, peer.seen_at = said, time.monotonic()
                self._answered_at = time.monotonic()

    def _judge(self) -> None:
        told = 1
        while not self._over.wait(0.2):
            still = time.monotonic() - self._moved_at
            if still <= self._limit:
                told = 1
            elif not self._at_work_on or self.missing().startswith("silent"):
                end(f"{self.explain(f'nothing moved for {self._limit:g} s')}. Stacks:", stacks=True)
            elif still > told * self._limit:
                told += 1
                if self._topology.rank == 0:
                    logger.warning(
                        "%s takes longer than %.0f s; every rank gives signs of life", self._at_work_on, still
                    )


def end(message: str, stacks: bool = False) -> NoReturn:
    """Say `message`, with every thread's stack if asked, and end this process at once with `EXIT_LOST`."""
    print(message, file=sys.stderr, flush=True)
    if stacks:
        faulthandler.dump_traceback(all_threads=True)
    leave(EXIT_LOST)
