"""Ranks from a launcher's variables, and uneven splits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.topology import Topology, split_range


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_splits_cover_everything_once_in_order_and_differ_by_at_most_one(total: int, parts: int) -> None:
    ranges = [split_range(total, parts, index) for index in range(parts)]
    assert [i for r in ranges for i in r] == list(range(total))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize("index", [-1, 3])
def test_a_part_that_does_not_exist_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="wanted 0 <= index < 3 parts"):
        split_range(10, 3, index)


def test_nothing_set_means_one_rank() -> None:
    assert Topology.from_environment({}) == Topology(0, 1, 0, 1)


def test_the_launchers_variables() -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"}
    assert Topology.from_environment(environment) == Topology(5, 8, 1, 4)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE: not set"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK: got 'x', wanted an integer"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "rank: got 2, wanted 0 <= rank < 2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "1"}, "rank_of_node: got 1"),
    ],
)
def test_contradictions_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Topology.from_environment(environment)
