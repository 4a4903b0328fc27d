"""How fast the ranks' collectives are: one timed, and the bandwidth and latency of a ring."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

_REPEATS = 5
# Large enough that its bytes take the time, and not the steps of the ring.
_RING_BYTES = 2**24


@dataclass(frozen=True)
class RingRates:
    """Of a ring of ranks.

    Attributes:
        bytes_per_second: that a rank sends in a large all-reduce.
        hop_seconds: of one step of the ring in a small one.
        bytes_per_work_second: sent in a second of this process's processor time; None on a GPU.
    """

    bytes_per_second: float
    hop_seconds: float
    bytes_per_work_second: float | None


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
    ranks = dist.get_world_size(group)
    steps = 2 * (ranks - 1)
    small, large = torch.zeros(64, device=device), torch.zeros(_RING_BYTES // 4, device=device)
    sent = steps * large.nbytes / ranks
    latency = fastest(lambda: dist.all_reduce(small, group=group), device)
    worked = time.process_time()
    whole = fastest(lambda: dist.all_reduce(large, group=group), device)
    work = (time.process_time() - worked) / (_REPEATS + 1)
    per_work = None if device.type == "cuda" else sent / max(work, 1e-9)
    return RingRates(sent / max(whole - latency, 1e-9), latency / steps, per_work)
