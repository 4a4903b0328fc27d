"""Exclusive seconds of each part of a step, on the host's clock or on the GPU's; and of each part of a start."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch


class Stopwatch:
    """Adds up the time spent in named parts; a part inside another is not counted twice.

    On a CUDA device the marks are events on the current stream, so that queued work is counted when it runs. Only
    `take` reads them, and waits for the stream.

    Attributes:
        marks: made since the process began: ranks that have done the same have the same number.
    """

    def __init__(self) -> None:
        self._running = False
        self._on_gpu = False
        self._named = False
        self._stack: list[str] = []
        self.marks = 0
        self._marks: list[tuple[Any, str | None]] = []

    def use(self, device: torch.device) -> None:
        """Measure on `device` from now on; until then no part is measured."""
        self._running = True
        self._on_gpu = device.type == "cuda"
        self._marks.clear()

    @property
    def current(self) -> str | None:
        """The innermost part in progress; may be read by another thread."""
        stack = self._stack
        return stack[-1] if stack else None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`; the part around it pauses."""
        if not self._running:
            yield
            return
        self._mark()
        self._stack.append(name)
        try:
            with torch.profiler.record_function(name) if self._named else nullcontext():
                yield
        finally:
            self._mark()
            self._stack.pop()

    @contextmanager
    def named(self) -> Iterator[None]:
        """Inside, each part is a range of its name in torch's profiler."""
        self._named = True
        try:
            yield
        finally:
            self._named = False

    def take(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        seconds: dict[str, float] = defaultdict(float)
        if self._on_gpu and self._marks:
            self._marks[-1][0].synchronize()
        for (start, _), (stop, name) in zip(self._marks, self._marks[1:], strict=False):
            if name is not None:
                seconds[name] += start.elapsed_time(stop) / 1e3 if self._on_gpu else stop - start
        self._marks.clear()
        return dict(seconds)

    def _mark(self) -> None:
        """Mark the current time: the time since the last mark belongs to the innermost part."""
        if self._on_gpu:
            now: Any = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.marks += 1
        self._marks.append((now, self._stack[-1] if self._stack else None))


class Startup:
    """Seconds from the start of this process to its first step, by part: the cost of a restart."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what was counted: count from the start of this process."""
        self.parts: dict[str, float] = {}
        self._began = self._last = _process_started()

    def done(self, part: str) -> None:
        """Count the time since the last call, or since the process started, as `part`."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.parts[part] = now - self._last
        self._last = now

    @property
    def began(self) -> float:
        """When this process was started, in seconds since the epoch."""
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - self._began)

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in self.parts.items())
        return f"{sum(self.parts.values()):.1f} s: {parts}"


def _process_started() -> float:
    """The start of this process, in seconds since the system was booted (Linux)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # a name may have spaces
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


# One process trains one model: its collectives and its loop share this stopwatch.
STEP = Stopwatch()

# The start of this process, so far. A fork is the start of another.
STARTUP = Startup()
os.register_at_fork(after_in_child=STARTUP.begin)
