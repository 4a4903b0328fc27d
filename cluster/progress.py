"""How far long work is, and when it will end: rewritten in place on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from tqdm import tqdm

from cluster.stop import tell

LOG_SECONDS = 60.0  # between lines if they are not rewritten in place

# No thread may run while workers are forked: the bar's would.
tqdm.monitor_interval = 0

# To be called with how much more is done.
Advance: TypeAlias = Callable[[int], object]


@contextmanager
def progress_bar(
    total: int | None, unit: str = "images", what: str | None = None, *, shown: bool = True
) -> Iterator[Advance]:
    """A bar of `what` up to `total` (None: it counts only), for work whose parts take equally long.

    In a log there is a line every `LOG_SECONDS`: work that takes less says nothing. One rank of many has it `shown`.
    """
    if not shown:
        yield lambda _: None
    elif sys.stderr.isatty():
        with tqdm(total=total, unit=f" {unit}", desc=what, smoothing=0.1) as bar:
            yield bar.update
    else:
        yield _LogBar(total, unit, what)


class _LogBar:
    def __init__(self, total: int | None, unit: str, what: str | None) -> None:
        self._total, self._unit, self._what = total, unit, what
        self._done, self._began = 0, time.monotonic()
        self._shown = self._began

    def __call__(self, more: int) -> None:
        self._done += more
        now = time.monotonic()
        if now < self._shown + LOG_SECONDS:
            return
        self._shown = now
        line = tqdm.format_meter(
            self._done, self._total or 0, now - self._began, ncols=0, prefix=self._what or "", unit=f" {self._unit}"
        )
        tell(line)


class ProgressLine:
    """One line that is rewritten on a terminal and repeated, calmly, in a log: progress, and the expected end."""

    def __init__(self, work: Sequence[float], shares: Sequence[float]) -> None:
        self._work, self._began = work, time.monotonic()
        self._first = self._part(shares)
        self._rewrite, self._shown = sys.stderr.isatty(), float("-inf")

    def show(self, what: str, shares: Sequence[float]) -> None:
        """Show how far it is; the end is estimated from the work that has been done since this process began."""
        now = time.monotonic()
        if not self._rewrite and now < self._shown + LOG_SECONDS:
            return
        self._shown, part, gone = now, self._part(shares), now - self._began
        end = ""
        if part > self._first:
            left = gone * (1 - part) / (part - self._first)
            end = f", {duration(left)} left, until {time.strftime('%a %H:%M', time.localtime(time.time() + left))}"
        line = f"{part:4.0%}  {what}, {duration(gone)} gone{end}"
        if self._rewrite:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            tell(line)

    def say(self, text: str) -> None:
        """A line that stays."""
        tell(f"\r\033[K{text}" if self._rewrite else text)

    def _part(self, shares: Sequence[float]) -> float:
        return sum(w * s for w, s in zip(self._work, shares, strict=True)) / sum(self._work)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
