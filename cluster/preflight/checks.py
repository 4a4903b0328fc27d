"""What the hosts told, judged: pure functions from facts to what is wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.preflight.facts import Facts

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One thing that was looked at on all hosts.

    Attributes:
        name: of the thing.
        found: what there is.
        faults: one clause for each host where it is wrong.
        advice: what to do then.
    """

    name: str
    found: str
    faults: tuple[str, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class Planned:
    """What ``stages/plan.py --json`` says about hosts: ranks, bytes of a step's exchanges and of a checkpoint."""

    ranks: int
    gradient_bytes: int
    embedding_bytes: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class Measured:
    """How long a collective took.

    Attributes:
        what: its name, and what of training it stands for.
        sent_bytes: by each rank, with a ring algorithm.
        seconds: of the quickest of several.
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
    first, wanted = next(iter(values.items()))
    return tuple(
        f"{host}: got {value}, wanted {wanted} as on {first}" for host, value in values.items() if value != wanted
    )


def versions(facts: Mapping[str, Facts]) -> Check:
    """Python, packages and code are the same."""
    names = dict.fromkeys(name for told in facts.values() for name in told.versions)
    faults = []
    for name in names:
        found = {host: told.versions.get(name, "nothing") for host, told in facts.items()}
        faults += [clause.replace(":", f": {name}:", 1) for clause in differing(found)]
    first = next(iter(facts.values())).versions
    return Check(
        "versions",
        ", ".join(f"{name} {first[name]}" for name in ("python", "torch", "deepspeed", "code") if name in first),
        tuple(faults),
        "install the same constraints.txt and check out the same commit there, or share one folder",
    )


def clock_offset(reading: float, asked: float, answered: float) -> float:
    """Seconds by which a clock is ahead (or, negative, behind) at the least.

    It was read at some moment between `asked` and `answered`, on the clock that others are compared with.
    """
    return max(0.0, reading - answered) or min(0.0, reading - asked)


def clocks(readings: Mapping[str, float], asked: float, answered: float, bound: float) -> Check:
    """Every clock is within `bound` seconds of this machine's."""
    offsets = {host: clock_offset(reading, asked, answered) for host, reading in readings.items()}
    worst = max(map(abs, offsets.values()))
    return Check(
        "clocks",
        f"within {worst + answered - asked:.1f} s",
        tuple(
            f"{host}: got a clock {abs(offset):.1f} s {'ahead' if offset > 0 else 'behind'}, wanted {bound:g} s at most"
            for host, offset in offsets.items()
            if abs(offset) > bound
        ),
        "start NTP there (timedatectl set-ntp true): alerts compare times of hosts",
    )


def gpus(facts: Mapping[str, Facts], slots: Mapping[str, int]) -> Check:
    """The same kind of GPU and driver everywhere, one for each slot; or none anywhere."""
    kinds = {host: ", ".join(sorted(set(told.gpus))) or "no GPU" for host, told in facts.items()}
    few = tuple(
        f"{host}: got {len(told.gpus)} GPUs, wanted {slots[host]} as the hostfile has slots"
        for host, told in facts.items()
        if len(told.gpus) < slots[host]
    )
    some = any(told.gpus for told in facts.values())
    kind = next(iter(kinds.values()))
    return Check(
        "GPUs",
        f"{min(len(told.gpus) for told in facts.values())} × {kind} a host" if some else "none: training on CPUs",
        differing(kinds) + few if some else (),
        "mend the driver there, or lower its slots",
    )


def shards(facts: Mapping[str, Facts]) -> Check:
    """The set is there, and the same."""
    told = {host: str(fact.shards) for host, fact in facts.items()}
    missing = tuple(f"{host}: got {text}, wanted a set" for host, text in told.items() if text.startswith("no "))
    present = {host: text for host, text in told.items() if not text.startswith("no ")}
    return Check(
        "shards",
        next(iter(present.values()), "nowhere"),
        missing + (differing(present) if present else ()),
        "mount the set there, or copy it whole: stages/shard.py pull",
    )


def shared(token: str, read: Mapping[str, str], folder: str) -> Check:
    """What one host wrote to the run's folder the others can read."""
    return Check(
        "run folder",
        f"{folder} is shared",
        tuple(
            f"{host}: {folder}: got {'another folder' if host in read else 'nothing'}, wanted what the first host wrote"
            for host, text in read.items()
            if text.strip() != token
        ),
        "mount one file system there on every host: checkpoints are written by all and read by all",
    )


def disk(facts: Mapping[str, Facts], wanted_bytes: float) -> Check:
    """There is room for the run's checkpoints."""
    free = {host: told.free_bytes or 0 for host, told in facts.items()}
    return Check(
        "disk",
        f"{min(free.values()) / GIB:,.1f} GiB free",
        tuple(
            f"{host}: got {size / GIB:,.1f} GiB free, wanted {wanted_bytes / GIB:,.1f}"
            for host, size in free.items()
            if size < wanted_bytes
        ),
        "make room, or put the run's folder elsewhere: a full disk costs saves",
    )


def port(facts: Mapping[str, Facts], number: int) -> Check:
    """The first host can listen where the ranks are to meet."""
    host, told = next(iter(facts.items()))
    fault = f"{host}: got port {number} taken, wanted it free"
    return Check(
        "port",
        f"{number} is free on {host}",
        () if told.port_is_free else (fault,),
        "end what listens there (ss -ltnp), or choose another with --master_port",
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
        "see docs/many_nodes.md: which interface NCCL takes (NCCL_DEBUG=INFO), cables, switch",
    )
