"""Which hosts get which ranks, and when starting again is no use."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.hosts import assign, read_hostfile
from cluster.supervision import GiveUpError, Restarts


def test_a_hostfile_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# two machines\nbeta slots=8\n\nalpha  slots=4  # the small one\n")
    assert list(read_hostfile(path).items()) == [("beta", 8), ("alpha", 4)]


@pytest.mark.parametrize("line", ["alpha", "alpha slots=x", "alpha slots=0", "a b slots=1", "beta slots=1"])
def test_a_faulty_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"beta slots=8\n{line}\n")
    with pytest.raises(ValueError, match=r"hosts line 2: got .*, wanted a new host as 'name slots=N'"):
        read_hostfile(path)


def test_an_empty_hostfile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# nobody\n")
    with pytest.raises(ValueError, match="got no host"):
        read_hostfile(tmp_path / "hosts")


def test_ranks_are_as_many_as_divide_the_batch() -> None:
    hosts = {"a": 4, "b": 4, "c": 4}
    assert assign(hosts, lambda ranks: 16 % ranks == 0) == {"a": 4, "b": 4}
    assert assign(hosts, lambda ranks: 12 % ranks == 0) == hosts
    assert assign({"a": 4, "b": 3}, lambda ranks: 12 % ranks == 0) == {"a": 4, "b": 2}
    assert assign(hosts, lambda ranks: ranks > 12) == {}
    assert assign({}, lambda _: True) == {}


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
