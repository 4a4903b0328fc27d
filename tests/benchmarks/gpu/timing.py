"""Times and memory on a device: one contestant at a time, CUDA events around every run, medians, and a table."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tests.benchmarks.results import write

Row = Mapping[str, Any]


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Give back what the contestant before has left."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def seconds(run: Callable[[], Any], device: torch.device, rounds: int, warmup: int = 3) -> float:
    """Median seconds of a run on the device, between two events of its stream; of the clock on the CPU."""
    for _ in range(warmup):
        run()
    if device.type != "cuda":
        return statistics.median(_clocked(run) for _ in range(rounds))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def _clocked(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def mebibytes(run: Callable[[], Any], device: torch.device) -> float:
    """Most memory in tensors during a run, beyond what lay there before it; NaN on the CPU."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Float32 products with factors of 10 bits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def report(name: str, rows: list[Row], **facts: Any) -> None:
    """Print the rows as a table for BENCHMARKS.md, and write them with the facts to runs/bench/`name`.json."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(f"\n### {name}\n\n| {' | '.join(columns)} |")
    print(f"|{' --- |' + ' ---: |' * (len(columns) - 1)}")
    for row in rows:
        print(f"| {' | '.join(_cell(row.get(column)) for column in columns)} |")
    numbers = [{key: None if _is_nan(value) else value for key, value in row.items()} for row in rows]
    write(name, {"rows": numbers, **facts})


def _cell(value: Any) -> str:
    if value is None or _is_nan(value):
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _is_nan(value: Any) -> bool:
    """Whether nothing was measured."""
    return isinstance(value, float) and math.isnan(value)
