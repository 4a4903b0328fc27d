"""One line that says how far a long piece of work is, and when it will end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

LOG_SECONDS = 60.0  # between lines if they are not rewritten in place


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
        print(f"\r\033[K{line}" if self._rewrite else line, end="" if self._rewrite else "\n", file=sys.stderr)
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """A line that stays."""
        print(f"\r\033[K{text}" if self._rewrite else text, file=sys.stderr, flush=True)

    def _part(self, shares: Sequence[float]) -> float:
        return sum(w * s for w, s in zip(self._work, shares, strict=True)) / sum(self._work)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
