"""How many classes fit, and what to change when a run does not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.planning.job import Job, Network
from pipeline.planning.memory import peak


def largest_classes(job: Job, network: Network, gpu_bytes: int) -> int:
    """The largest C that fits, everything else as in `job`; 0 when the network alone does not."""

    def fits(rows: int) -> bool:
        return peak(replace(job, classes=rows * job.ranks), network)[1] <= gpu_bytes

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * job.ranks


@dataclass(frozen=True)
class Change:
    """One thing to do differently: what, the peak that it leaves, and whether that fits."""

    what: str
    peak_bytes: int
    fits: bool


def changes(job: Job, network: Network, gpu_bytes: int) -> list[Change]:
    """Single changes that lower the peak, each with what it leads to."""
    candidates: list[tuple[str, Job]] = []
    if not job.fused_update and job.accumulation == 1:
        candidates.append(("fused_update: no row gradient is held", replace(job, fused_update=True)))
    if job.micro_batch % 2 == 0 and not job.fused_update:
        candidates.append((f"accumulation {2 * job.accumulation}", replace(job, accumulation=2 * job.accumulation)))
    candidates += [
        (f"zero_stage {stage}", replace(job, zero_stage=stage)) for stage in (0, 1, 2, 3) if stage != job.zero_stage
    ]
    candidates.append(_more_ranks(job, network, gpu_bytes))
    now = peak(job, network)[1]
    sizes = [(what, peak(other, network)[1]) for what, other in candidates]
    return [Change(what, size, size <= gpu_bytes) for what, size in sizes if size < now]


def _more_ranks(job: Job, network: Network, gpu_bytes: int) -> tuple[str, Job]:
    """The smallest doubling of ranks that fits, or the last that divides batch and classes."""
    while job.micro_batch % 2 == 0 and job.classes >= 2 * job.ranks:
        job = replace(job, ranks=2 * job.ranks)
        if peak(job, network)[1] <= gpu_bytes:
            break
    return f"ranks {job.ranks}", job
