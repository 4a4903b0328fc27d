"""When to start again after a failure, and when no more."""

from __future__ import annotations

from dataclasses import dataclass


class GiveUpError(RuntimeError):
    """Another start would fail as well; the message gives the reason."""


@dataclass
class Restarts:
    """Counts failures, and computes the wait before the next start.

    Attributes:
        limit: restarts in all.
        same_step: give up after this many failures in a row at the same step.
        first_wait_seconds, longest_wait_seconds: the wait doubles, from one to the other, while no step is gained.
    """

    limit: int = 50
    same_step: int = 3
    first_wait_seconds: float = 5.0
    longest_wait_seconds: float = 300.0

    def __post_init__(self) -> None:
        self._count, self._in_a_row, self._last_step, self._furthest = 0, 0, -1, -1
        self._without_gain = 0

    def failed_at(self, step: int) -> float:
        """Seconds to wait before starting again, after a failure when `step` steps had been done.

        Raises:
            GiveUpError: if the limits are reached.
        """
        self._count += 1
        self._in_a_row = self._in_a_row + 1 if step == self._last_step else 1
        self._without_gain = 0 if step > self._furthest else self._without_gain + 1
        self._last_step, self._furthest = step, max(step, self._furthest)
        if self._in_a_row >= self.same_step:
            raise GiveUpError(f"{self._in_a_row} failures in a row at step {step}: starting again does not help")
        if self._count > self.limit:
            raise GiveUpError(f"{self._count} failures, {self.limit} restarts allowed")
        return self._wait()

    def in_vain(self) -> float:
        """Seconds to wait if hosts are missing or nothing could be written: no failure, both may come at any time."""
        self._without_gain += 1
        return self._wait()

    def _wait(self) -> float:
        doublings = min(self._without_gain, 60)  # a disk may stay full for weeks
        return min(self.longest_wait_seconds, self.first_wait_seconds * 2.0**doublings)
