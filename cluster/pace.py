"""How long a rank's own work in a step takes now: a mean over seconds, which one delay does not move."""

from __future__ import annotations

from collections import deque

SECONDS, LEAST_STEPS = 8.0, 3


class Pace:
    """The mean of the latest steps without the longest of them: those of some seconds, and a few at least.

    A single delay, as of a file that was slow once, is the longest. A rank that becomes 15% slower is 10% slower
    here after 6 s, and one that is held up again and again is as slow here as it is.
    """

    def __init__(self, seconds: float = SECONDS, least_steps: int = LEAST_STEPS) -> None:
        self._seconds, self._least = seconds, least_steps
        self._steps: deque[tuple[float, float]] = deque()

    def add(self, now: float, seconds: float) -> float:
        """Take in a step that ended `now` with so many seconds of own work; the mean."""
        self._steps.append((now, seconds))
        while len(self._steps) > self._least and now - self._steps[0][0] > self._seconds:
            self._steps.popleft()
        latest = [seconds for _, seconds in self._steps]
        return seconds if len(latest) == 1 else (sum(latest) - max(latest)) / (len(latest) - 1)
