"""How the ranks of a run meet: at a store on rank 0's host, in bounded time, and only if they agree.

Every rank leaves its host and its facts (versions, recipe, data) there. Rank 0 waits for all of them and leaves a
verdict: who did not come, who came only to say that it refuses, or whose facts differ from its own and in what. Every
rank reads the same verdict, so that on every host somebody says what is wrong.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch.distributed as dist

from cluster.deepspeed_command import hosts_by_rank
from cluster.topology import Topology

# Rank 0 leaves after its verdict at the latest by then; the store goes with it.
_READING_SECONDS = 5.0


class StartError(RuntimeError):
    """The ranks did not come together, or do not agree; the message names which and why, not who says so."""


class DisagreeError(StartError):
    """The ranks are all there, and do not agree, or one refuses what it was given: starting again is no use."""


def meet(
    topology: Topology,
    address: str,
    port: int,
    timeout_seconds: float,
    facts: Mapping[str, str],
    refusal: str = "",
) -> dist.Store:
    """The run's store, once every rank has come to it and all have the same `facts`.

    A rank that has already found what keeps it from starting brings it as its `refusal`, for the others to hear.

    Raises:
        StartError: within `timeout_seconds` (and a few to spread the word), on every rank that is there.
        DisagreeError: on every rank, when facts differ or a rank refuses.
    """
    try:
        store = _store(topology, address, port, timeout_seconds)
    except RuntimeError as error:  # torch's network errors are
        raise StartError(_why_no_store(topology, address, port, timeout_seconds, error)) from None
    card = {"host": socket.gethostname(), "facts": dict(facts), "refusal": refusal}
    store.set(f"here/{topology.rank}", json.dumps(card))
    try:
        verdict = _judge(store, topology, timeout_seconds) if topology.rank == 0 else _hear(store, timeout_seconds)
    except RuntimeError as error:
        raise StartError(f"rank 0 at {address}:{port} answered, then was lost: {_first_line(error)}") from None
    if verdict.absent:
        raise StartError(verdict.absent)
    if verdict.differences:
        raise DisagreeError(verdict.differences)
    return store


def _store(topology: Topology, address: str, port: int, timeout_seconds: float) -> dist.Store:
    """Rank 0's store, or an error in time: torch tries for seconds longer than it is asked to.

    Its attempt cannot be ended, only left behind: a process that waits for its threads waits for that as well.
    """
    answer: queue.SimpleQueue[dist.Store | RuntimeError] = queue.SimpleQueue()

    def connect() -> None:
        try:
            limit = timedelta(seconds=timeout_seconds)
            first = topology.rank == 0
            answer.put(dist.TCPStore(address, port, topology.num_ranks, first, limit, wait_for_workers=False))
        except RuntimeError as error:
            answer.put(error)

    threading.Thread(target=connect, name="rendezvous").start()
    try:
        found = answer.get(timeout=timeout_seconds)
    except queue.Empty:
        raise RuntimeError("no answer of a store") from None
    if isinstance(found, RuntimeError):
        raise found
    return found


def _why_no_store(topology: Topology, address: str, port: int, timeout_seconds: float, error: RuntimeError) -> str:
    if topology.rank == 0:
        return (
            f"cannot keep the store at {address}:{port}: {_first_line(error)}; is --master_addr an address of this "
            "host, and is the port free (else choose another with --master_port)?"
        )
    return (
        f"rank 0 does not answer at {address}:{port} within {timeout_seconds:g} s ({_first_line(error)}); check "
        "--master_addr and --master_port, and whether rank 0's host is up and reachable from here"
    )


@dataclass(frozen=True)
class _Verdict:
    """What is wrong, in words; empty where nothing is."""

    absent: str = ""
    differences: str = ""


def _judge(store: dist.Store, topology: Topology, timeout_seconds: float) -> _Verdict:
    """Rank 0's part: wait for all, compare, and leave the verdict until the others have read it."""
    deadline = time.monotonic() + timeout_seconds
    waiting = list(range(topology.num_ranks))
    while waiting and time.monotonic() < deadline:
        waiting = [rank for rank in waiting if not store.check([f"here/{rank}"])]
        time.sleep(0.02 if waiting else 0)
    cards = {rank: json.loads(store.get(f"here/{rank}")) for rank in range(topology.num_ranks) if rank not in waiting}
    absent = _absent(waiting, topology, timeout_seconds) if waiting else ""
    verdict = _Verdict(absent, "" if absent else refusals(cards) or differences(cards))
    store.set("verdict", json.dumps(asdict(verdict)))
    reading = time.monotonic() + _READING_SECONDS
    while verdict != _Verdict() and store.add("read", 0) < len(cards) - 1 and time.monotonic() < reading:
        time.sleep(0.02)
    return verdict


def _hear(store: dist.Store, timeout_seconds: float) -> _Verdict:
    store.wait(["verdict"], timedelta(seconds=timeout_seconds + _READING_SECONDS))
    verdict = _Verdict(**json.loads(store.get("verdict")))
    store.add("read", 1)
    return verdict


def _absent(ranks: list[int], topology: Topology, timeout_seconds: float) -> str:
    names = [f"rank {rank} ({host_of(rank, topology)})" for rank in ranks]
    return f"not come within {timeout_seconds:g} s: {', '.join(names)}; is that host up, and did the launcher reach it?"


def host_of(rank: int, topology: Topology) -> str:
    """What is known of the host of a rank that never spoke: its name, where somebody told it, else its place."""
    node = rank // topology.ranks_of_node
    names = os.environ.get("SPHERESCALE_HOSTS", "").split(",")
    if by_rank := hosts_by_rank():
        return by_rank[rank]
    return names[node] if node < len(names) and names[node] else f"host {node + 1}"


def host_at(store: dist.Store, rank: int) -> str:
    """The host that a rank came from to the run's store."""
    return str(json.loads(store.get(f"here/{rank}"))["host"])


def refusals(cards: Mapping[int, Mapping[str, object]]) -> str:
    """Who refuses and why, one clause a host and reason; empty when nobody does. Cards as in `differences`."""
    found: dict[tuple[object, object], str] = {}
    for rank, card in cards.items():
        if why := card.get("refusal"):
            found.setdefault((card["host"], why), f"rank {rank} on {card['host']} refuses: {why}")
    return "; ".join(found.values())


def differences(cards: Mapping[int, Mapping[str, object]]) -> str:
    """How the facts of some host differ from rank 0's, one clause a host and fact; empty when they do not.

    A card is ``{"host": name, "facts": {key: value}}``, by rank.
    """
    reference = cards[0]
    wanted: Mapping[str, str] = reference["facts"]  # type: ignore[assignment]
    found: dict[tuple[object, str], str] = {}
    for rank, card in cards.items():
        got: Mapping[str, str] = card["facts"]  # type: ignore[assignment]
        for key in sorted(wanted.keys() | got.keys()):
            ours, theirs = wanted.get(key, "nothing"), got.get(key, "nothing")
            if ours != theirs:
                clause = (
                    f"rank {rank} on {card['host']}: {key}: got {theirs}, wanted {ours} as on rank 0 "
                    f"({reference['host']})"
                )
                found.setdefault((card["host"], key), clause)
    return "; ".join(found.values())


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
