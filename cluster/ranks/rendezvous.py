"""How the ranks of a run meet: at a store on rank 0's host, in bounded time, and only if they agree.

Every rank writes its host and its facts (versions, recipe, data) into the store. Rank 0 waits for all of them and
writes a verdict: which ranks did not join, which refuse to start, or which facts differ from its own. Every rank reads
the same verdict, so that the reason is printed on every host.
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
from cluster.ranks.topology import Topology

# Rank 0 ends at most this long after its verdict, and the store ends with it.
_READING_SECONDS = 5.0


class StartError(RuntimeError):
    """The ranks did not meet, or do not agree; the message names which ranks and why, not the rank that raises it."""


class DisagreeError(StartError):
    """All ranks joined but do not agree, or one refuses what it was given: starting again would end the same way."""


def meet(
    topology: Topology,
    address: str,
    port: int,
    timeout_seconds: float,
    facts: Mapping[str, str],
    refusal: str = "",
) -> dist.Store:
    """The run's store, once every rank has joined and all have the same `facts`.

    A rank that already knows why it cannot start passes the reason as its `refusal`, to be printed by the others.

    Raises:
        StartError: within `timeout_seconds` (and a few more to pass it on), on every rank that joined.
        DisagreeError: on every rank, if facts differ or a rank refuses.
    """
    try:
        store = _store(topology, address, port, timeout_seconds)
    except RuntimeError as error:  # what torch raises for network errors
        raise StartError(_why_no_store(topology, address, port, timeout_seconds, error)) from None
    card = {"host": socket.gethostname(), "facts": dict(facts), "refusal": refusal}
    store.set(f"here/{topology.rank}", json.dumps(card))
    try:
        if topology.rank == 0:
            verdict = _judge(store, topology, timeout_seconds)
        else:
            verdict = _await_verdict(store, timeout_seconds)
    except RuntimeError as error:
        raise StartError(f"rank 0 at {address}:{port} answered, then was lost: {_first_line(error)}") from None
    if verdict.absent:
        raise StartError(verdict.absent)
    if verdict.differences:
        raise DisagreeError(verdict.differences)
    return store


def _store(topology: Topology, address: str, port: int, timeout_seconds: float) -> dist.Store:
    """Rank 0's store, or an error in time: torch tries for seconds longer than its time-out.

    Its attempt cannot be cancelled, only abandoned: a process that joins its threads waits for that as well.
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
        raise RuntimeError("no answer from a store") from None
    if isinstance(found, RuntimeError):
        raise found
    # torchrun keeps one store for all its attempts, with what the ranks of an earlier one wrote
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)


def _why_no_store(topology: Topology, address: str, port: int, timeout_seconds: float, error: RuntimeError) -> str:
    if topology.rank == 0:
        return (
            f"cannot open the store at {address}:{port}: {_first_line(error)}; is --master_addr an address of this "
            "host, and is the port free (else choose another with --master_port)?"
        )
    return (
        f"rank 0 does not answer at {address}:{port} within {timeout_seconds:g} s ({_first_line(error)}); check "
        "--master_addr and --master_port, and whether rank 0's host is up and reachable from here"
    )


@dataclass(frozen=True)
class _Verdict:
    """What is wrong, in words; both empty if nothing is."""

    absent: str = ""
    differences: str = ""


def _judge(store: dist.Store, topology: Topology, timeout_seconds: float) -> _Verdict:
    """Rank 0's part: wait for all, compare, and keep the verdict in the store until the others have read it."""
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


def _await_verdict(store: dist.Store, timeout_seconds: float) -> _Verdict:
    store.wait(["verdict"], timedelta(seconds=timeout_seconds + _READING_SECONDS))
    verdict = _Verdict(**json.loads(store.get("verdict")))
    store.add("read", 1)
    return verdict


def _absent(ranks: list[int], topology: Topology, timeout_seconds: float) -> str:
    names = [f"rank {rank} ({host_of(rank, topology)})" for rank in ranks]
    advice = "is that host up, and did the launcher reach it?"
    return f"did not join within {timeout_seconds:g} s: {', '.join(names)}; {advice}"


def host_of(rank: int, topology: Topology) -> str:
    """The host of a rank that never joined: its name if the launcher or the environment gives it, else its number."""
    node = rank // topology.ranks_of_node
    names = os.environ.get("SPHERESCALE_HOSTS", "").split(",")
    if by_rank := hosts_by_rank():
        return by_rank[rank]
    if len(names) == topology.num_ranks:  # as the supervisor gives them
        return names[rank]
    return names[node] if node < len(names) and names[node] else f"host {node + 1}"


def host_at(store: dist.Store, rank: int) -> str:
    """The host that a rank wrote into the run's store."""
    return str(json.loads(store.get(f"here/{rank}"))["host"])


def refusals(cards: Mapping[int, Mapping[str, object]]) -> str:
    """Which ranks refuse and why, one clause a host and reason; empty if none does. Cards as in `differences`."""
    found: dict[tuple[object, object], str] = {}
    for rank, card in cards.items():
        if why := card.get("refusal"):
            found.setdefault((card["host"], why), f"rank {rank} on {card['host']} refuses: {why}")
    return "; ".join(found.values())


def differences(cards: Mapping[int, Mapping[str, object]]) -> str:
    """How the facts of some host differ from rank 0's, one clause a host and fact; empty if none does.

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
