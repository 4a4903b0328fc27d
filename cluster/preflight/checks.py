"""Judges the hosts' facts: pure functions from facts to what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from cluster.preflight.facts import Facts

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One property that was checked on all hosts.

    Attributes:
        name: of the property.
        found: its value, to be printed if there is no fault.
        faults: one clause for each host with a fault.
        advice: how to mend the faults.
    """

    name: str
    found: str
    faults: tuple[str, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class Planned:
    """What ``stages/plan.py --json`` wants of hosts: ranks, bytes of a step's collectives and of a checkpoint."""

    ranks: int
    gradient_bytes: int
    embedding_bytes: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class Measured:
    """The duration of a collective.

    Attributes:
        what: its name, and its part in a training step.
        sent_bytes: by each rank, with a ring algorithm.
        seconds: the shortest of several repeats.
    """

    what: str
    sent_bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes a second that a rank sends."""
        return self.sent_bytes / self.seconds


def differing(values: Mapping[str, str]) -> tuple[str, ...]:
    """A clause for each host whose value is not the first host's."""
    (first, wanted), *others = values.items()
    return tuple(f"{host}: got {value}, wanted {wanted} as on {first}" for host, value in others if value != wanted)


def versions(facts: Mapping[str, Facts]) -> Check:
    """Python, packages and code are the same."""
    faults = []
    for name in dict.fromkeys(chain.from_iterable(fact.versions for fact in facts.values())):
        found = {host: fact.versions.get(name, "nothing") for host, fact in facts.items()}
        faults += [clause.replace(":", f": {name}:", 1) for clause in differing(found)]
    first = next(iter(facts.values())).versions
    shown = [f"{name} {first[name]}" for name in ("python", "torch", "deepspeed", "code") if name in first]
    return Check(
        "versions",
        ", ".join(shown),
        tuple(faults),
        "install the same constraints.txt and check out the same commit there, or share one folder",
    )


def clock_offset(reading: float, asked: float, answered: float) -> float:
    """Least seconds by which a clock is ahead or, if negative, behind.

    It was read at some moment between `asked` and `answered`, which are times of the reference clock.
    """
    return max(0.0, reading - answered) or min(0.0, reading - asked)


def clocks(readings: Mapping[str, float], asked: float, answered: float, bound: float) -> Check:
    """Every clock is within `bound` seconds of this machine's."""
    offsets = {host: clock_offset(reading, asked, answered) for host, reading in readings.items()}
    worst = max(map(abs, offsets.values()))
    faults = []
    for host, offset in offsets.items():
        if abs(offset) > bound:
            where = "ahead" if offset > 0 else "behind"
            faults.append(f"{host}: got a clock {abs(offset):.1f} s {where}, wanted {bound:g} s at most")
    return Check(
        "clocks",
        f"within {worst + answered - asked:.1f} s",
        tuple(faults),
        "start NTP there (timedatectl set-ntp true): alerts compare times of hosts",
    )


def gpus(facts: Mapping[str, Facts], slots: Mapping[str, int]) -> Check:
    """The same kind of GPU and driver everywhere, one for each slot; or none anywhere."""
    kinds = {host: ", ".join(sorted(set(fact.gpus))) or "no GPU" for host, fact in facts.items()}
    counts = {host: len(fact.gpus) for host, fact in facts.items()}
    few = [host for host, count in counts.items() if count < slots[host]]
    faults = [f"{host}: got {counts[host]} GPUs, wanted {slots[host]} as the hostfile has slots" for host in few]
    some = any(counts.values())
    kind = next(iter(kinds.values()))
    return Check(
        "GPUs",
        f"{min(counts.values())} × {kind} a host" if some else "none: training on CPUs",
        (*differing(kinds), *faults) if some else (),
        "mend the driver there, or lower its slots",
    )


def shards(facts: Mapping[str, Facts]) -> Check:
    """Every host has the shards, and the same ones."""
    missing = []
    present = {}
    for host, fact in facts.items():
        found = str(fact.shards)
        if found.startswith("no "):
            missing.append(f"{host}: got {found}, wanted shards")
        else:
            present[host] = found
    return Check(
        "shards",
        next(iter(present.values()), "nowhere"),
        (*missing, *(differing(present) if present else ())),
        "mount the shards there, or copy all of them: stages/shard.py pull",
    )


def shared(token: str, read: Mapping[str, str], folder: str) -> Check:
    """Every host can read what the first wrote to the run's folder."""
    apart = [host for host, text in read.items() if text != token]
    return Check(
        "run folder",
        f"{folder} is shared",
        tuple(f"{host}: {folder}: got another folder, wanted what the first host wrote" for host in apart),
        "mount one file system there on every host: checkpoints are written by all and read by all",
    )


def disk(facts: Mapping[str, Facts], wanted_bytes: float) -> Check:
    """There is room for the run's checkpoints."""
    free = {host: fact.free_bytes or 0 for host, fact in facts.items()}
    full = [host for host, size in free.items() if size < wanted_bytes]
    wanted = f"wanted {wanted_bytes / GIB:,.1f}"
    return Check(
        "disk",
        f"{min(free.values()) / GIB:,.1f} GiB free",
        tuple(f"{host}: got {free[host] / GIB:,.1f} GiB free, {wanted}" for host in full),
        "make room, or put the run's folder elsewhere: saves fail on a full disk",
    )


def port(facts: Mapping[str, Facts], number: int) -> Check:
    """The first host can listen on the port at which the ranks will meet."""
    host, first = next(iter(facts.items()))
    fault = f"{host}: got port {number} taken, wanted it free"
    return Check(
        "port",
        f"{number} is free on {host}",
        () if first.port_is_free else (fault,),
        "end the process that listens there (ss -ltnp), or choose another port with --master_port",
    )


def bandwidth(measured: list[Measured], links: Mapping[str, float], wanted_rate: float) -> Check:
    """The largest collective of a step sends at the wanted rate, in bytes a second; the slowest link is named.

    `links` are bytes a second from one host to the next.
    """
    largest = max(measured, key=lambda one: one.sent_bytes)
    parts = [f"{one.what}: {1e3 * one.seconds:.3g} ms, {one.rate / 1e9:.3g} GB/s" for one in measured]
    slow = f"got {largest.rate / 1e9:.3g} GB/s in the {largest.what}, wanted {wanted_rate / 1e9:.3g}"
    if links:
        link = min(links, key=links.__getitem__)
        parts.append(f"slowest link {link}: {links[link] / 1e9:.3g} GB/s")
        slow = f"{link}: {slow}; this link alone has {links[link] / 1e9:.3g}"
    return Check(
        "bandwidth",
        "; ".join(parts),
        (slow,) if largest.rate < wanted_rate else (),
        "see docs/many_nodes.md: the interface that NCCL uses (NCCL_DEBUG=INFO), cables, switch",
    )
