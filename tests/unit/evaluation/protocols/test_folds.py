"""Folds and people of lists that name none, in the words of the rule."""

import pytest

from pipeline.evaluation.protocols.folds import folds_of, people_by_flags, tenths


@pytest.mark.parametrize("first", [True, False])
def test_ten_blocks_are_the_folds_whatever_their_sizes(first: bool) -> None:
    same, expected = [], []
    for fold in range(1, 11):
        block = [first] * fold + [not first] * (3 + fold % 2)
        same += block
        expected += [fold] * len(block)
    assert folds_of(same) == expected


@pytest.mark.parametrize(
    "same", [[True] * 40 + [False] * 60, [False] * 30 + [True] * 20, [True, False] * 35, [True, True, False] * 11]
)
def test_otherwise_each_kind_is_cut_into_tenths(same: list[bool]) -> None:
    folds = folds_of(same)
    for kind in (True, False):
        mine = [fold for fold, flag in zip(folds, same, strict=True) if flag == kind]
        assert mine == tenths(len(mine)) == sorted(mine)
        assert set(mine) == set(range(1, 11))
        sizes = [mine.count(fold) for fold in range(1, 11)]
        assert max(sizes) - min(sizes) <= 1


def test_people_are_connected_through_any_number_of_pairs() -> None:
    images = ["a", "b", "c", "d", "b", "c", "x", "d", "y", "y"]
    people = people_by_flags(images, [True, True, True, False, True])
    assert {people[image] for image in "abcd"} == {people["a"]}
    assert len({people["a"], people["x"], people["y"]}) == 3
