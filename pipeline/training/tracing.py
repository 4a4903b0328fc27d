"""A trace, and on a GPU a memory snapshot, of chosen steps: what a step does when, and which line holds its memory.

The trace is Chrome's JSON, for https://ui.perfetto.dev; the snapshot is a pickle for https://pytorch.org/memory_viz.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from cluster.stopwatch import STEP
from pipeline.run.folder import RunFolder

logger = logging.getLogger(__name__)

# Allocations and frees that a snapshot looks back on: more than those of a step.
_MEMORY_EVENTS = 200_000


class Tracer:
    """Traces some of the steps of this rank into ``RUN/profile/``; a traced step is slower, and all ranks wait for it.

    Args:
        steps: numbered as in the log, from 1; empty: none.
        run: the run's folder.
        device: what is traced besides the CPU.
    """

    def __init__(self, steps: Sequence[int], run: Path, device: torch.device) -> None:
        self._steps, self._run, self._on_gpu = frozenset(steps), RunFolder(run), device.type == "cuda"

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Trace what is done inside, if the step of this number is to be. A disk that is full does not end the run."""
        if number not in self._steps:
            yield
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        if self._on_gpu:
            torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)
        try:
            with torch.profiler.profile(activities=activities, profile_memory=True) as profiler, STEP.named():
                yield
            self._write(number, profiler)
        finally:
            if self._on_gpu:
                torch.cuda.memory._record_memory_history(enabled=None)

    def _write(self, number: int, profiler: torch.profiler.profile) -> None:
        file = self._run.trace(number)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(file))
            if self._on_gpu:
                torch.cuda.memory._dump_snapshot(str(file.with_suffix(".pickle")))
        except (OSError, RuntimeError) as error:
            logger.warning("%s: %s; the trace of the step is lost", file, error)
        else:
            logger.info("step %d: traced into %s", number, file)
