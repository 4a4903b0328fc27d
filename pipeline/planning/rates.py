"""How fast a machine does the parts of a step: written by a calibration run, read by the planner."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

_MAY_BE_NONE = (
    "collective_bytes_per_second",
    "hop_seconds",
    "host_bytes_per_second",
    "host_hop_seconds",
    "exchange_bytes_per_work_second",
)


@dataclass(frozen=True)
class Link:
    """What a ring of ranks sends over its slowest connection.

    Attributes:
        bytes_per_second: that each rank sends.
        hop_seconds: latency of one step.
    """

    bytes_per_second: float
    hop_seconds: float


@dataclass(frozen=True)
class Rates:
    """Of one rank while all ranks work. The numbers of one precision, and of backbones like the one measured.

    Attributes:
        ranks: that took part.
        network_flops_per_second, network_call_seconds: forward and backward pass of the backbone on more and more
            images, and what one pass takes however few they are.
        head_flops_per_second, head_call_seconds: the same of the head, on more and more classes.
        update_bytes_per_second: fp32 parameters and rows, each counted once, that a step updates.
        decode_images_per_second: read, decoded and normalised, with nothing else at work.
        other_seconds: of a step, the same whatever its size: agreeing, bookkeeping, waiting for the slowest rank.
        collective_bytes_per_second, hop_seconds: what a rank sends in a large collective of a host's ranks, and the
            latency of one step of their ring; None if each host had one rank.
        host_bytes_per_second, host_hop_seconds: the same of a ring through several hosts, which is as fast as its
            slowest link; None if one host was measured.
        exchange_bytes_per_work_second: of the network's gradient, sent in a second by which that lengthens the backward
            pass beside it; None if one rank was measured, or ZeRO, which sends later.
        copy_bytes_per_second: out of the live tensors, which holds training up.
        write_bytes_per_second: to the run's folder, in the background, all ranks together.
        start_seconds: from the start of a process to its first step done.
    """

    ranks: int
    network_flops_per_second: float
    network_call_seconds: float
    head_flops_per_second: float
    head_call_seconds: float
    update_bytes_per_second: float
    decode_images_per_second: float
    other_seconds: float
    collective_bytes_per_second: float | None
    hop_seconds: float | None
    host_bytes_per_second: float | None
    host_hop_seconds: float | None
    exchange_bytes_per_work_second: float | None
    copy_bytes_per_second: float
    write_bytes_per_second: float
    start_seconds: float

    def __post_init__(self) -> None:
        """Raises ValueError for an impossible rate, naming it."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            may_be_zero = field.name.endswith("_seconds") and field.name != "start_seconds"
            if value is None and field.name in _MAY_BE_NONE:
                continue
            number = isinstance(value, (int, float)) and math.isfinite(value)
            if not number or value < 0 or (value == 0 and not may_be_zero):
                raise ValueError(f"{field.name}: got {value}, wanted a number above 0{' or 0' if may_be_zero else ''}")

    def link(self, hosts: int) -> Link | None:
        """Of the ranks on so many hosts; if only the other kind was measured, that; None if one rank was.

        Collectives are rings in the order of the ranks: each host sends to the next as one rank sends to another.
        """
        within = self.collective_bytes_per_second, self.hop_seconds
        between = self.host_bytes_per_second, self.host_hop_seconds
        for speed, hop in (within, between) if hosts == 1 else (between, within):
            if speed is not None and hop is not None:
                return Link(speed, hop)
        return None


def read_rates(file: Path) -> Rates:
    """The rates of a calibration run.

    Raises:
        ValueError: naming the file, and the rate that is missing, unknown or impossible.
    """
    try:
        held = json.loads(file.read_text())
        rates = dict(held["rates"])
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; wanted what stages/calibrate.py wrote") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: wanted the JSON that stages/calibrate.py wrote") from None
    names = {field.name for field in dataclasses.fields(Rates)}
    if names != rates.keys():
        missing, unknown = sorted(names - rates.keys()), sorted(rates.keys() - names)
        raise ValueError(f"{file}: missing {missing}, unknown {unknown}; calibrate anew with this version")
    try:
        return Rates(**rates)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
