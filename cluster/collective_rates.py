"""How fast the ranks' collectives are: one timed, and the bandwidth and latency of a ring."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

_REPEATS = 5
# Large enough that its bytes take the time, and not the steps of the ring.
_RING_BYTES = 2**24


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


def ring_rates(device: torch.device) -> tuple[float, float]:
    """Bytes a second that a rank sends in a large all-reduce, and the seconds of one step of its ring in a small one.

    All ranks take part, more than one.
    """
    steps = 2 * (dist.get_world_size() - 1)
    small, large = torch.zeros(64, device=device), torch.zeros(_RING_BYTES // 4, device=device)
    latency = fastest(lambda: dist.all_reduce(small), device)
    whole = fastest(lambda: dist.all_reduce(large), device)
    return steps * large.nbytes / dist.get_world_size() / max(whole - latency, 1e-9), latency / steps
