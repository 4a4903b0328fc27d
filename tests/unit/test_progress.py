"""Long work says how far it is where nobody watches a terminal, and short work says nothing."""

from __future__ import annotations

import sys

import pytest

from cluster import progress
from cluster.progress import ProgressLine, progress_bar
from tests.full_disk import FullLog


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_has_a_line_a_minute_with_the_rate_and_what_is_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(1000, what="probes") as advance:
        for _ in range(5):
            clock.now += 30
            advance(100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [["probes:", "20%"], ["probes:", "40%"]]
    assert "400/1000" in lines[1] and "3.33 images/s" in lines[1] and "<03:00" in lines[1]


def test_without_a_total_it_counts(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(None, "photos") as advance:
        clock.now += 61
        advance(122)
    assert "122 photos" in capsys.readouterr().err


def test_less_than_a_minute_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(10) as advance:
        clock.now += 59
        advance(10)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar(10) as advance:
        advance(10)
    shown = capsys.readouterr().err
    assert "\r" in shown and "10/10" in shown


def test_one_rank_of_many_shows_it(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(10, shown=False) as advance:
        clock.now += 61
        advance(10)
    assert capsys.readouterr().err == ""


def test_a_full_disk_under_the_log_ends_no_work(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", FullLog())
    with pytest.raises(OSError, match="No space left"):
        print("a line", file=sys.stderr)
    with progress_bar(10) as advance:
        clock.now += 61
        advance(10)
    line = ProgressLine([1.0], [0.0])
    line.show("training", [0.0])
    line.say("one run is done")
