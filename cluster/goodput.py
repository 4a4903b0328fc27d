"""Where the wall time of a run went: into steps that count, or lost to a cause. Instants in, seconds out.

Every moment from the start of a run's first process belongs to exactly one of them, across restarts too, so that they
add up to the wall time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from cluster.metrics import CAUSES

# Saves that are remembered; what a step before them had trained is estimated.
_REMEMBERED = 100


@dataclass(frozen=True)
class Account:
    """Of a run, up to a moment.

    Args:
        began: when the run's first process was started, in seconds since the epoch; later by all pauses.
        until: up to when time is accounted for.
        trained: seconds of steps whose result is kept.
        lost: seconds by cause; a cause that is not there cost nothing.
        marks: steps that the run may go back to, rising, and what `trained` was after each.
    """

    began: float
    until: float
    trained: float
    lost: Mapping[str, float]
    marks: tuple[tuple[int, float], ...]

    @classmethod
    def opened(cls, at: float) -> Account:
        """Of a run that begins."""
        return cls(at, at, 0.0, {}, ((0, 0.0),))

    @property
    def ratio(self) -> float:
        """The share of the wall time in which steps were trained that count; 0 at the very beginning."""
        wall = self.until - self.began
        return self.trained / wall if wall > 0 else 0.0

    def passed(self, now: float, lost: Mapping[str, float] = {}, rest: str | None = None) -> Account:
        """Account for the time until `now`.

        Args:
            now: if the clock was set back, nothing has passed until it is where it was.
            lost: seconds by cause, measured meanwhile; together they are cut to what has passed.
            rest: the cause of what is left; None: steps were trained.

        Raises:
            ValueError: for a cause that is none of `cluster.metrics.CAUSES`.
        """
        now = max(now, self.until)
        left, spent = now - self.until, dict(self.lost)
        for cause, seconds in lost.items():
            taken = min(max(seconds, 0.0), left)
            spent[_known(cause)] = spent.get(cause, 0.0) + taken
            left -= taken
        if rest is None:
            return replace(self, until=now, trained=self.trained + left, lost=spent)
        spent[_known(rest)] = spent.get(rest, 0.0) + left
        return replace(self, until=now, lost=spent)

    def paused(self, until: float) -> Account:
        """Nobody worked for the run until then: no part of its wall time."""
        pause = max(0.0, until - self.until)
        return replace(self, began=self.began + pause, until=self.until + pause)

    def saved(self, step: int) -> Account:
        """The run may go back to this step, the latest."""
        earlier = tuple(mark for mark in self.marks if mark[0] < step)
        kept = (*earlier[:1], *earlier[1:][-_REMEMBERED:])
        return replace(self, marks=(*kept, (step, self.trained)))

    def back_to(self, step: int) -> Account:
        """The run resumes after `step`: what was trained since is lost work."""
        kept = self._trained_after(step)
        spent = {**self.lost, "lost_work": self.lost.get("lost_work", 0.0) + self.trained - kept}
        return replace(self, trained=kept, lost=spent).saved(step)

    def _trained_after(self, step: int) -> float:
        """Of a step without a mark: as if the steps between two marks took equally long."""
        for (low, trained), (high, more) in pairwise(self.marks):
            if low <= step < high:
                return trained + (more - trained) * (step - low) / (high - low)
        return min(self.trained, self.marks[-1][1])


def _known(cause: str) -> str:
    if cause not in CAUSES:
        raise ValueError(f"cause: got {cause!r}, wanted one of {', '.join(CAUSES)}")
    return cause
