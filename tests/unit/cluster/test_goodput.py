"""The account of a run's wall time: whatever happens, its parts add up to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.goodput import Account
from cluster.metrics import CAUSES
from cluster.pace import Pace

CAUSE = st.sampled_from(CAUSES)
SECONDS = st.floats(0, 1e4, allow_nan=False)
Change = Callable[[Account], Account]

PASSED = st.builds(
    lambda ahead, lost, rest: lambda account: account.passed(account.until + ahead, lost, rest),
    st.floats(-100, 1e4, allow_nan=False),  # a clock may be set back
    st.dictionaries(CAUSE, SECONDS),
    st.none() | CAUSE,
)
PAUSED = st.builds(lambda ahead: lambda account: account.paused(account.until + ahead), SECONDS)
SAVED = st.builds(lambda step: lambda account: account.saved(step), st.integers(0, 300))
BACK = st.builds(lambda step: lambda account: account.back_to(step), st.integers(0, 300))


@given(st.lists(PASSED | PAUSED | SAVED | BACK, max_size=40))
def test_trained_and_lost_seconds_add_up_to_the_wall_time(changes: list[Change]) -> None:
    account = Account.opened(1000.0)
    for change in changes:
        account = change(account)
        total = account.trained + sum(account.lost.values())
        assert total == pytest.approx(account.until - account.began, rel=1e-9, abs=1e-6)
        assert min([account.trained, *account.lost.values()]) >= -1e-9
        assert 0 <= account.ratio <= 1 + 1e-9
        steps = [step for step, _ in account.marks]
        assert steps == sorted(set(steps)) and steps[0] == 0


def test_a_run_that_is_killed_and_resumed() -> None:
    account = Account.opened(0.0).passed(10, rest="start")
    for step in range(1, 8):  # a second each, a tenth of it waiting for data; saved after the fifth, which took 2 s
        stall = 2.0 if step == 5 else 0.0
        account = account.passed(account.until + 1 + stall, {"save_stall": stall, "data_wait": 0.1})
        account = account.saved(step) if stall else account
    assert account.trained == pytest.approx(6.3)
    account = account.back_to(5).passed(49, rest="restart")
    assert account.trained == pytest.approx(4.5)
    wanted = {"start": 10, "save_stall": 2, "data_wait": 0.7, "lost_work": 1.8, "restart": 30}
    assert account.lost == pytest.approx(wanted)
    assert account.ratio == pytest.approx(4.5 / 49)


def test_to_go_back_to_before_the_remembered_saves_is_estimated() -> None:
    account = Account.opened(0.0)
    for step in range(1, 301):
        account = account.passed(float(step)).saved(step)
    assert len(account.marks) < 150
    assert account.back_to(250).trained == pytest.approx(250)
    assert account.back_to(33).trained == pytest.approx(33)
    assert account.back_to(0).trained == 0
    assert account.back_to(1000).trained == 300


def test_a_pause_is_no_part_of_the_wall_time() -> None:
    account = Account.opened(0.0).passed(5.0).paused(1000.0)
    assert (account.began, account.until, account.ratio) == (995.0, 1000.0, 1.0)


def test_a_clock_that_was_set_back_takes_nothing_from_any_cause() -> None:
    account = Account.opened(0.0).passed(5.0, {"data_wait": -3.0})
    assert (account.trained, account.lost) == (5.0, {"data_wait": 0.0})
    assert account.paused(2.0) == account


def test_a_cause_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="cause: got 'lunch', wanted one of start, restart, "):
        Account.opened(0.0).passed(1.0, rest="lunch")


def test_the_pace_is_that_of_the_latest_seconds_and_one_delay_does_not_move_it() -> None:
    pace = Pace()
    times = [0.1 * step for step in range(200)]
    before = [pace.add(now, 9.0 if step == 50 else 0.2) for step, now in enumerate(times)]
    assert before == pytest.approx([0.2] * 200)
    slower = [pace.add(20 + now, 0.23) for now in times[:90]]
    assert slower[60] / 0.2 > 1.1 and slower[-1] == pytest.approx(0.23)


def test_the_pace_of_long_steps_is_that_of_the_last_three_without_the_longest() -> None:
    pace = Pace()
    assert [pace.add(60 * step, seconds) for step, seconds in enumerate([5, 5, 5, 8, 7, 7])] == [5, 5, 5, 5, 6, 7]


def test_a_rank_that_is_held_up_again_and_again_is_slow() -> None:
    pace = Pace()
    paces = [pace.add(0.1 * step, 0.16 if step % 2 else 0.02) for step in range(200)]
    assert paces[-1] == pytest.approx(0.09, abs=0.002)
