"""How fast the ranks' collectives are: one timed, a ring's bandwidth and latency, and what it takes from computing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

_REPEATS = 5
# Large enough that its bytes take the time, and not the steps of the ring.
_RING_BYTES = 2**24
# What is sent beside computing: as long as a backward pass, two thirds of it, hides; no more than a network's gradient.
_BESIDE, _MOST_BESIDE_BYTES = 0.6, 2**27


@dataclass(frozen=True)
class RingRates:
    """Of a ring of ranks.

    Attributes:
        bytes_per_second: that a rank sends in a large all-reduce.
        hop_seconds: of one step of the ring in a small one.
    """

    bytes_per_second: float
    hop_seconds: float


def fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest of several calls that all ranks begin together, after one that is not counted."""
    times = []
    for _ in range(_REPEATS + 1):
        dist.barrier()
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def ring_rates(device: torch.device, group: dist.ProcessGroup | None = None) -> RingRates:
    """Of the ranks of a group, more than one; None: of all. All ranks of the run take part, each in a group."""
    steps = 2 * (dist.get_world_size(group) - 1)
    small, large = torch.zeros(64, device=device), torch.zeros(_RING_BYTES // 4, device=device)
    latency = fastest(lambda: dist.all_reduce(small, group=group), device)
    whole = fastest(lambda: dist.all_reduce(large, group=group), device)
    return RingRates(_passes(group) * large.nbytes / max(whole - latency, 1e-9), latency / steps)


def bytes_per_work_second(computing: Callable[[], object], ring: RingRates, device: torch.device) -> float:
    """Bytes that a rank sends in a second by which it lengthens what the rank computes meanwhile; of all ranks.

    An exchange takes processors, caches and memory from the products beside it. Its own processor time does not say how
    much: on one processor it was that, on another twice as much.

    Args:
        computing: a network's passes, without collectives.
        ring: of all ranks.
    """
    alone = fastest(computing, device)
    hidden = min(_BESIDE * alone * ring.bytes_per_second, _MOST_BESIDE_BYTES)
    numbers = torch.tensor(max(int(hidden / _passes() / 4), 1), device=device)
    dist.all_reduce(numbers, dist.ReduceOp.MIN)
    sent = torch.zeros(int(numbers), device=device)

    def both() -> None:
        work = dist.all_reduce(sent, async_op=True)
        computing()
        work.wait()

    return _passes() * sent.nbytes / max(fastest(both, device) - alone, 1e-9)


def _passes(group: dist.ProcessGroup | None = None) -> float:
    """How many times over a rank sends what a ring reduces."""
    ranks = dist.get_world_size(group)
    return 2 * (ranks - 1) / ranks
