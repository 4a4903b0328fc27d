"""A plan in words: tables of what is held, sent and computed, the verdict, the time of a step, the course of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, starmap

from pipeline.planning.advice import changes, largest_classes
from pipeline.planning.job import GIB, Job, Network
from pipeline.planning.memory import head_block, head_block_bytes, memory, peak
from pipeline.planning.rates import Rates
from pipeline.planning.timing import Course, flops, scaling, step_parts, traffic


def fitting(job: Job, network: Network, gpu_bytes: int) -> list[str]:
    """What a GPU holds, sends and computes, and whether that fits."""
    return [
        *_memory_table(memory(job, network)),
        f"the classifier's blocks: {min(head_block(job), job.rows):,} classes at a time, "
        f"{head_block_bytes(job) / 2**20:,.1f} MiB, whatever the number of identities",
        "",
        *_table("sent by a GPU in a step, MiB", traffic(job, network), 2**20),
        "",
        *_table("work of a GPU in a step, TFLOP", flops(job, network), 10**12),
        "",
        *_verdict(job, network, gpu_bytes),
    ]


def timing(job: Job, network: Network, rates: Rates, more_ranks: Sequence[int]) -> list[str]:
    """The time of a step by part, and the same on other numbers of ranks."""
    parts = step_parts(job, network, rates)
    seconds = sum(parts.values())
    return [
        *_table("time of a step, ms", {**parts, "step": seconds}, 1e-3),
        f"{job.global_batch / seconds:,.0f} images a second",
        "",
        f"{'ranks':>7}{'images a second':>18}{'efficiency':>13}",
        *starmap(_scaling_line, scaling(job, network, rates, more_ranks)),
        "Assumed: a rank computes as fast as when it was measured; a backbone takes the time of its multiply-adds;",
        "collectives are rings, one after another, as fast as their slowest link; decoding overlaps.",
        *_links(job, rates),
    ]


def _links(job: Job, rates: Rates) -> list[str]:
    """How fast the rings are taken to be, and of which of them nothing was measured."""
    link = rates.link(job.hosts)
    if job.ranks == 1 or link is None:
        return []
    where = "between hosts" if job.hosts > 1 else "within a host"
    unknown = rates.host_bytes_per_second if job.hosts > 1 else rates.collective_bytes_per_second
    note = "" if unknown is not None else " (not measured: that of the other kind is taken; see --host-gbit)"
    speed = 8 * link.bytes_per_second / 1e9
    return [f"a ring {where}: {speed:.3g} Gb/s a rank, {1e3 * link.hop_seconds:.3g} ms a step{note}"]


def whole_run(run: Course, *, steps: int, save_every: int, step_seconds: float, hosts: int, host_hours: float) -> str:
    """How long a run takes, and what saves and lost hosts cost of it."""
    share = run.stall_seconds / (save_every * step_seconds)
    return "\n".join(
        [
            f"the recipe's {steps:,} steps: {run.training_seconds / 3600:,.2f} h of training, "
            f"{run.total_seconds / 3600:,.2f} h with saves and failures",
            f"a save every {save_every:,} steps holds training up for {run.stall_seconds:.2f} s ({share:.3%}) and is "
            f"whole after {run.write_seconds:.1f} s",
            f"{hosts} hosts, one lost each {host_hours / hosts:,.0f} h (assumed: {host_hours:,.0f} h for a host): "
            f"{run.failures:.2f} to be expected",
            f"each costs {run.lost_work_seconds:,.0f} s of training and {run.restart_seconds:,.0f} s to the next step",
            f"goodput {run.goodput:.1%}: the share of the time that goes into steps that count",
            f"saves cost least every {run.best_interval_steps:,} steps (Daly 2006, equation 37)",
        ]
    )


def _scaling_line(ranks: int, speed: float, efficiency: float) -> str:
    return f"{ranks:>7,}{speed:>18,.0f}{efficiency:>13.0%}"


def _memory_table(moments: Mapping[str, Mapping[str, int]]) -> list[str]:
    lines = [f"{'memory of a GPU, GiB':<28}" + "".join(f"{moment:>10}" for moment in moments)]
    for part in dict.fromkeys(chain(*moments.values())):
        sizes = [alive.get(part, 0) for alive in moments.values()]
        lines.append(_memory_line(part, sizes))
    totals = [sum(alive.values()) for alive in moments.values()]
    return [*lines, _memory_line("total", totals)]


def _memory_line(part: str, sizes: Sequence[int]) -> str:
    cells = [f"{size / GIB:>10.2f}" if size else f"{'-':>10}" for size in sizes]
    return f"{part:<28}" + "".join(cells)


def _table(title: str, sizes: Mapping[str, float], unit: float) -> list[str]:
    return [title, *(f"{name:<40}{size / unit:>10,.2f}" for name, size in sizes.items())]


def _verdict(job: Job, network: Network, gpu_bytes: int) -> list[str]:
    moment, highest = peak(job, network)
    fits = highest <= gpu_bytes
    lines = [
        f"{'fits' if fits else 'DOES NOT FIT'}: {highest / GIB:.2f} of {gpu_bytes / GIB:.4g} GiB, fullest at {moment}",
        f"largest number of identities, all else the same: {largest_classes(job, network, gpu_bytes):,}",
    ]
    if fits:
        return lines
    possible = changes(job, network, gpu_bytes)
    if not any(change.fits for change in possible):
        lines.append("no single change is enough: combine some, or take a larger GPU or a smaller backbone")
    return lines + [f"  {c.what}: {c.peak_bytes / GIB:.2f} GiB{', fits' if c.fits else ''}" for c in possible]
