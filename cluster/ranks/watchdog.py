"""Ends a hung run and names the ranks that stopped responding.

Every rank's watchdog writes a heartbeat into the run's store each second: how far its main thread is. If the main
thread makes no progress within the limit, as in a collective that another rank never enters, the watchdog prints which
ranks are silent (host lost, process frozen) or behind, then this rank's stacks, and ends the process. The launcher then
ends the others. The stacks of every rank stay in the run's folder (`cluster.ranks.black_box`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import torch.distributed as dist

from cluster.ranks.black_box import BlackBox
from cluster.ranks.rendezvous import host_at
from cluster.ranks.topology import Topology
from cluster.stop import EXIT_LOST, leave, tell
from cluster.stopwatch import STEP

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
# A rank without a heartbeat for this long is silent.
SILENT_SECONDS = 4 * BEAT_SECONDS

GLOO_ADDS = re.compile(r"^\[\S+:\d+\] |\. This is typically caused by .*")


@dataclass
class _Peer:
    """The last heartbeat of another rank, and when this rank first read it."""

    heartbeat: bytes
    seen_at: float


class Watchdog:
    """Watches this rank's main thread while it trains, as a context.

    Args:
        store: of the run, shared by all ranks.
        topology: this rank's place.
        limit_seconds: the longest that one step, with its collectives, may take.
        beat_seconds: between two heartbeats.
        silent_seconds: a rank without a heartbeat for this long is silent.
        stacks: folder that the stacks of a hung run are written to, see `cluster.ranks.black_box`; None: nowhere.
    """

    def __init__(
        self,
        store: dist.Store,
        topology: Topology,
        limit_seconds: float,
        beat_seconds: float = BEAT_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
        stacks: Path | None = None,
    ) -> None:
        self._box = BlackBox(stacks, topology.rank) if stacks else None
        # The loop and other threads use the store as well: a connection of its own never waits for theirs.
        self._store = store.clone() if hasattr(store, "clone") else store
        self._topology, self._limit = topology, limit_seconds
        self._beat_seconds, self._silent_seconds = beat_seconds, silent_seconds
        self._step, self._moved_at, self._at_work_on = 0, time.monotonic(), ""
        self._store_answered_at = time.monotonic()
        others = [rank for rank in range(topology.num_ranks) if rank != topology.rank]
        self._hosts = {rank: host_at(store, rank) for rank in others}
        # A rank without any heartbeat has been silent since this rank began to watch.
        self._peers = {rank: _Peer(b"", time.monotonic()) for rank in others}
        self._finished = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat, name="watchdog _beat", daemon=True),
            threading.Thread(target=self._judge, name="watchdog _judge", daemon=True),
        ]

    def __enter__(self) -> Watchdog:
        self._moved_at = self._store_answered_at = time.monotonic()
        for peer in self._peers.values():
            peer.seen_at = self._moved_at
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._finished.set()
        self._threads[1].join()  # which would arm it again
        if self._box:
            self._box.close()

    def tick(self, step: int) -> None:
        """Note that the main thread has done `step` steps: the limit counts from here again."""
        self._step, self._moved_at = step, time.monotonic()

    @contextlib.contextmanager
    def patient(self, what: str) -> Iterator[None]:
        """Allow work of any length that is no step, such as ``"a save"``: only a silent rank then ends the process.

        Rank 0 logs a warning each time that the limit has passed again.
        """
        around, self._at_work_on = self._at_work_on, what
        try:
            yield
        finally:
            self._at_work_on = around
            self.tick(self._step)

    def missing(self) -> str:
        """The ranks that are silent or behind, in words; empty if all respond and are as far as this rank."""
        now = time.monotonic()
        if now - self._store_answered_at > self._silent_seconds and self._topology.rank != 0:
            return (
                f"silent: rank 0 on {self._hosts[0]}, which serves the store (no answer for "
                f"{now - self._store_answered_at:.0f} s)"
            )
        silent = []
        behind = []
        for rank, peer in self._peers.items():
            name = f"rank {rank} on {self._hosts[rank]}"
            quiet = now - peer.seen_at
            if quiet > self._silent_seconds:
                silent.append(f"{name} (no heartbeat for {quiet:.0f} s)")
            if peer.heartbeat:
                place = json.loads(peer.heartbeat)
                if place["marks"] < STEP.marks:
                    behind.append(f"behind: {name} is in step {place['step']}, {place['part']}")
        return "silent: " + ", ".join(silent) if silent else ", ".join(behind)

    def _silent_here(self) -> dict[int, int]:
        """The silent ranks of this host and their process ids; none if a lower rank of this host tells of them.

        Those of half the time that makes one silent: of ranks that froze together the first is noticed first.
        """
        now, here = time.monotonic(), socket.gethostname()
        beside = {rank: peer for rank, peer in self._peers.items() if self._hosts[rank] == here and peer.heartbeat}
        silent = {rank for rank, peer in beside.items() if now - peer.seen_at > self._silent_seconds / 2}
        if any(rank < self._topology.rank for rank in beside.keys() - silent):
            return {}
        return {rank: json.loads(beside[rank].heartbeat)["process"] for rank in sorted(silent)}

    def _write_stacks(self, why: str) -> None:
        """Leave the stacks of this rank, and of the silent ones of its host, in the run's folder."""
        if self._box:
            for rank, process in self._silent_here().items():
                self._box.write_other(rank, process)
            self._box.write(why)

    def explain(self, what: str, told: str = "") -> str:
        """Which ranks are missing, and `what` happened here, last in the words that a library `told`.

        Waits until a lost rank has been silent long enough.
        """
        waited_until = time.monotonic() + self._silent_seconds + 2 * self._beat_seconds
        while not (missing := self.missing()).startswith("silent") and time.monotonic() < waited_until:
            time.sleep(0.1)
        here = f"rank {self._topology.rank} on {socket.gethostname()}"
        words = f": {told}" if told else ""
        return f"{missing or 'every rank responds'}; {here}: {what} in step {self._step + 1}{words}"

    def _beat(self) -> None:
        """Write this rank's heartbeats and read the others'. Blocks for as long as the store does."""
        number = 0
        while not self._finished.wait(self._beat_seconds):
            number += 1
            place = {
                "beat": number,
                "step": self._step + 1,
                "part": STEP.current or "between parts",
                "marks": STEP.marks,
                "process": os.getpid(),
            }
            with contextlib.suppress(RuntimeError):  # the store is gone: `missing` reports that it does not answer
                self._store.set(f"beat/{self._topology.rank}", json.dumps(place))
                for rank, peer in self._peers.items():
                    heartbeat = self._store.get(f"beat/{rank}") if self._store.check([f"beat/{rank}"]) else b""
                    if heartbeat != peer.heartbeat:
                        peer.heartbeat, peer.seen_at = heartbeat, time.monotonic()
                self._store_answered_at = time.monotonic()

    def _judge(self) -> None:
        warnings = 1
        while not self._finished.wait(0.2):
            if self._box:
                self._box.arm(self._limit + self._silent_seconds)  # fires if this thread cannot run for so long
            still = time.monotonic() - self._moved_at
            if still <= self._limit:
                warnings = 1
            elif not self._at_work_on or self.missing().startswith("silent"):
                why = self.explain(f"no progress for {self._limit:g} s")
                self._write_stacks(why)
                end(f"{why}. Stacks:", stacks=True)
            elif still > warnings * self._limit:
                warnings += 1
                if self._topology.rank == 0:
                    logger.warning("%s takes longer than %.0f s; every rank responds", self._at_work_on, still)


def in_short(error: Exception) -> str:
    """The first line of a library's error, without the place in its source and the advice that gloo adds."""
    return GLOO_ADDS.sub("", str(error).strip().split("\n")[0])


def end(message: str, stacks: bool = False) -> NoReturn:
    """Print `message`, and with `stacks` every thread's stack, and end this process at once with `EXIT_LOST`."""
    tell(message)
    if stacks:
        faulthandler.dump_traceback(all_threads=True)
    leave(EXIT_LOST)
