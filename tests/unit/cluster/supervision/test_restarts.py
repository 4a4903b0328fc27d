"""Restarts are spaced, and limited in all and at one step; what the supervisor makes of each end of a start."""

from __future__ import annotations

import errno
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from cluster.stop import EXIT_LOST, EXIT_REFUSED, EXIT_STOPPED, EXIT_UNSAVED
from cluster.supervision.hosts import HERE
from cluster.supervision.launcher import Launcher
from cluster.supervision.restarts import GiveUpError, Restarts
from pipeline.training.start import Start
from stages import supervise


def test_waits_double_until_a_step_is_gained() -> None:
    restarts = Restarts(first_wait_seconds=1, longest_wait_seconds=5)
    assert [restarts.failed_at(step) for step in (10, 7, 9, 8, 20, 20)] == [1, 2, 4, 5, 1, 2]


def test_a_failure_that_repeats_at_a_step_ends_it() -> None:
    restarts = Restarts(same_step=3)
    for step in (5, 6, 6, 7, 7):
        restarts.failed_at(step)
    with pytest.raises(GiveUpError, match="3 failures in a row at step 7"):
        restarts.failed_at(7)


def test_restarts_are_bounded_in_all() -> None:
    restarts = Restarts(limit=4)
    for step in range(4):
        restarts.failed_at(step)
    with pytest.raises(GiveUpError, match="5 failures, 4 restarts allowed"):
        restarts.failed_at(99)


def test_hosts_or_room_are_waited_for_and_are_no_failure() -> None:
    restarts = Restarts(limit=1, same_step=2, first_wait_seconds=1, longest_wait_seconds=5)
    assert [restarts.in_vain() for _ in range(2000)][:4] == [2, 4, 5, 5]
    assert restarts.failed_at(3) == 1


class Ends:
    """A launcher whose starts end with these codes or errors; its host is absent first, it is asked to stop last."""

    def __init__(self, *ends: int | OSError, absent: int = 0, stops: bool = False) -> None:
        self.ends, self.absent, self.stops = list(ends), absent, stops
        self.ports: list[int] = []
        self.waits: list[float] = []

    @property
    def stopping(self) -> bool:
        return self.stops and not self.ends

    def answering(self) -> set[str]:
        self.absent -= 1
        return set() if self.absent >= 0 else {HERE}

    def why_absent(self, _host: str) -> str:
        return "no route to host"

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        assert len(self.waits) < 50, "it goes on for ever"

    def run(self, ranks: dict[str, int], port: int) -> int:
        assert ranks == {HERE: 2}
        self.ports.append(port)
        end = self.ends.pop(0)
        if isinstance(end, OSError):
            raise end
        return end


def supervised(launcher: Ends, run: Path, *, min_ranks: int = 1, is_finished: bool = False) -> int:
    recipe = SimpleNamespace(optimizer=SimpleNamespace(steps=10))
    start = SimpleNamespace(run=run, recipe=recipe, is_finished=is_finished, check_ranks=lambda _ranks: None)
    args = Namespace(max_restarts=9, same_step=3, wait_seconds=1.0, min_ranks=min_ranks, master_port=500)
    return supervise.supervise(cast(Launcher, launcher), {HERE: 2}, cast(Start, start), args)


def test_what_has_ended_well_is_over_only_if_it_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Ends(0, EXIT_STOPPED)
    assert supervised(again, tmp_path) == EXIT_STOPPED
    assert (again.ports, again.waits) == ([500, 501], [1])  # the port before may still be taken
    assert supervised(Ends(EXIT_LOST), tmp_path, is_finished=True) == 0
    monkeypatch.setattr(supervise, "has_reached", lambda _run, step: step == 10)
    assert supervised(Ends(0), tmp_path) == 0


@pytest.mark.parametrize("code", [EXIT_REFUSED, 2])
def test_what_is_refused_is_not_tried_again(tmp_path: Path, code: int) -> None:
    assert supervised(Ends(code), tmp_path) == EXIT_REFUSED


def test_who_is_asked_to_stop_does_not_start_again(tmp_path: Path) -> None:
    assert supervised(Ends(EXIT_LOST, stops=True), tmp_path) == EXIT_STOPPED


def test_a_full_disk_there_or_here_is_waited_for_and_other_failures_end_it(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "log")
    waiting = Ends(EXIT_UNSAVED, full, EXIT_UNSAVED, full, EXIT_STOPPED)
    assert supervised(waiting, tmp_path) == EXIT_STOPPED
    assert waiting.waits == [2, 4, 8, 16]
    with pytest.raises(GiveUpError, match="3 failures in a row at step 0"):
        supervised(Ends(EXIT_LOST, EXIT_LOST, EXIT_LOST), tmp_path)
    with pytest.raises(PermissionError):
        supervised(Ends(PermissionError(errno.EACCES, "Permission denied", "log")), tmp_path)


def test_hosts_are_waited_for_until_there_are_as_many_ranks_as_are_wanted(tmp_path: Path) -> None:
    waiting = Ends(EXIT_STOPPED, absent=5)
    assert supervised(waiting, tmp_path, min_ranks=2) == EXIT_STOPPED
    assert (waiting.ports, waiting.waits) == ([505], [2, 4, 8, 16, 32])
