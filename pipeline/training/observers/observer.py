"""What may watch a run: the events that it hears, and the guard that keeps its failures from the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.run.saver import Saved
from pipeline.training.record import Record, Window

if TYPE_CHECKING:
    from pipeline.training.evaluator import Evaluated

logger = logging.getLogger(__name__)


class Observer:
    """Hears what happens in a run; an event that is not overridden does nothing.

    Events come one at a time from the training loop, on the rank that made the observer, so one that takes long holds
    up every rank. An observer must change nothing of the run and enter no collective: other ranks may have none.
    It may raise anything: that is logged, and training continues. Its constructor, which is not guarded, should open
    and write nothing; `started` is the place for that.
    """

    @property
    def name(self) -> str:
        """What a warning about it begins with."""
        return type(self).__name__

    def started(self, step: int) -> None:
        """Training begins, with `step` steps done: 0, or those of the checkpoint resumed from."""

    def recorded(self, record: Record, window: Window) -> None:
        """A step is over, applied or not; `window` has the means up to it."""

    def logged(self, record: Record, window: Window) -> None:
        """As `recorded`, and after it: of each `log.every`-th step and each that saved, if it was applied."""

    def saved(self, saved: Saved) -> None:
        """A save has ended, well or not; before `recorded` of the step during which it did."""

    def evaluated(self, found: Evaluated) -> None:
        """The step that was recorded last was evaluated; after a resume, the step resumed from may be."""

    def ended(self, finished: bool) -> None:
        """Training is over; not `finished` if an error ended it."""


class Observers:
    """Passes events to observers, in their order; one that fails is named once, until it works again.

    Args:
        observers: of this rank.
        log_every: steps between those that are `logged`.
    """

    def __init__(self, observers: Sequence[Observer], log_every: int) -> None:
        self._observers, self._log_every = observers, log_every
        self._failing: set[tuple[int, str]] = set()

    @contextmanager
    def watching(self, step: int) -> Iterator[Observers]:
        """Tell the start, after `step` steps, and at the end of the block whether an error ended it."""
        finished = False
        try:
            self._tell("started", step)
            yield self
            finished = True
        finally:
            self._tell("ended", finished)

    def recorded(self, record: Record, window: Window) -> None:
        """Tell of a step and of what came with it."""
        if record.saved is not None:
            self._tell("saved", record.saved)
        self._tell("recorded", record, window)
        due = record.step % self._log_every == 0 or record.stall_seconds is not None
        if due and not record.skipped:
            self._tell("logged", record, window)

    def evaluated(self, found: Evaluated) -> None:
        """Tell of an evaluation."""
        self._tell("evaluated", found)

    def _tell(self, event: str, *about: object) -> None:
        for number, observer in enumerate(self._observers):
            try:
                getattr(observer, event)(*about)
            except Exception as error:  # a full disk, a server that is gone: no reason to end a run
                if (number, event) not in self._failing:
                    logger.warning("%s: %s: %s; training continues without it", observer.name, event, error)
                self._failing.add((number, event))
            else:
                self._failing.discard((number, event))
