"""Events in their order, and observers that fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from pipeline.run.saver import Saved
from pipeline.training.observers.observer import Observer, Observers
from pipeline.training.record import Record, Window
from tests.records import evaluated, record, window_of

if TYPE_CHECKING:
    from pipeline.training.evaluator import Evaluated


class Listener(Observer):
    """Writes down what it hears; raises at events of the names in `breaks`."""

    def __init__(self, *breaks: str) -> None:
        self.heard: list[str] = []
        self.breaks = set(breaks)

    def hear(self, event: str, what: object) -> None:
        if event in self.breaks:
            raise ValueError("its server is gone")
        self.heard.append(f"{event} {what}")

    @override
    def started(self, step: int) -> None:
        self.hear("started", step)

    @override
    def recorded(self, record: Record, window: Window) -> None:
        self.hear("recorded", record.step)

    @override
    def logged(self, record: Record, window: Window) -> None:
        self.hear("logged", record.step)

    @override
    def saved(self, saved: Saved) -> None:
        self.hear("saved", saved.step)

    @override
    def evaluated(self, found: Evaluated) -> None:
        self.hear("evaluated", found.step)

    @override
    def ended(self, finished: bool) -> None:
        self.hear("ended", finished)


def tell_of_a_run(*observers: Observer) -> None:
    """Steps 5 to 8, logged every third: 6 saves, 7 is skipped and learns how that save ended, 8 saves."""
    hub = Observers(observers, log_every=3)
    steps = (
        record(5),
        record(6, stall_seconds=0.1),
        record(7, skipped="spike", saved=Saved(6, 1.0, None)),
        record(8, stall_seconds=0.1),
    )
    with hub.watching(4):
        for step in steps:
            hub.recorded(step, window_of(step))
            if step.step == 6:
                hub.evaluated(evaluated(6))


def test_events_come_in_the_order_of_the_run() -> None:
    listener = Listener()
    tell_of_a_run(listener)
    assert listener.heard == [
        *("started 4", "recorded 5", "recorded 6", "logged 6", "evaluated 6"),
        *("saved 6", "recorded 7", "recorded 8", "logged 8", "ended True"),
    ]


def test_a_skipped_step_is_never_logged() -> None:
    listener = Listener()
    skipped = record(3, skipped="spike", stall_seconds=0.1)
    Observers([listener], log_every=3).recorded(skipped, window_of(skipped))
    assert listener.heard == ["recorded 3"]


def test_one_that_fails_is_named_once_and_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    broken, whole = Listener("recorded"), Listener()
    tell_of_a_run(broken, whole)
    assert broken.heard == ["started 4", "logged 6", "evaluated 6", "saved 6", "logged 8", "ended True"]
    assert [event for event in whole.heard if event.startswith("recorded")] == [f"recorded {n}" for n in (5, 6, 7, 8)]
    assert caplog.messages == ["Listener: recorded: its server is gone; training continues without it"]


def test_one_that_worked_again_is_named_again(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    hub = Observers([listener], log_every=1)
    for step, breaks in enumerate((True, True, False, True), start=1):
        listener.breaks = {"recorded"} if breaks else set()
        hub.recorded(record(step), window_of(record(step)))
    assert len(caplog.messages) == 2


def test_an_error_of_the_run_passes_and_ends_it_unfinished() -> None:
    listener = Listener()
    with pytest.raises(RuntimeError, match="of the run"), Observers([listener], 1).watching(0):
        raise RuntimeError("of the run")
    assert listener.heard == ["started 0", "ended False"]


def test_an_observer_that_overrides_nothing_hears_everything_and_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    tell_of_a_run(Observer())
    assert caplog.messages == []
