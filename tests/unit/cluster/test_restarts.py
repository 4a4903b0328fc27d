"""Restarts are spaced, and limited in all and at one step."""

from __future__ import annotations

import pytest

from cluster.restarts import GiveUpError, Restarts


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


def test_a_full_disk_is_waited_for_and_is_no_failure() -> None:
    restarts = Restarts(limit=1, same_step=2, first_wait_seconds=1, longest_wait_seconds=5)
    assert [restarts.unsaved() for _ in range(2000)][:4] == [2, 4, 5, 5]
    assert restarts.failed_at(3) == 1
