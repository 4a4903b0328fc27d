"""The nearest rows against a dense float64 reference; every pair is found once."""

from __future__ import annotations

import pytest
import torch

from pipeline.head.nearest import nearest_rows, pairs_above


@pytest.mark.parametrize("block", [1, 3, 8, 17, 100])
def test_nearest_rows_equal_the_dense_ones(block: int) -> None:
    rows_CD = torch.randn(17, 5, generator=torch.Generator().manual_seed(0)) * 3
    read: list[range] = []

    def part(classes: range) -> torch.Tensor:
        read.append(classes)
        return rows_CD[classes.start : classes.stop]

    best, whose = nearest_rows(part, 17, block)
    unit = torch.nn.functional.normalize(rows_CD.double(), dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-2)
    assert torch.allclose(best.double(), cosine.max(dim=1).values, atol=1e-6)
    assert torch.equal(whose, cosine.argmax(dim=1))
    assert max(len(classes) for classes in read) <= block


def test_pairs_are_named_once_the_most_similar_first() -> None:
    rows_CD = torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [0.3, 1], [-1, -1]])
    pairs = pairs_above(*nearest_rows(lambda classes: rows_CD[classes.start : classes.stop], 5, 2), 0.9)
    assert [pair[:2] for pair in pairs] == [(0, 2), (1, 3)]
    assert [pair[2] for pair in pairs] == pytest.approx([1 / 1.01**0.5, 1 / 1.09**0.5])
    assert pairs_above(*nearest_rows(lambda classes: rows_CD[classes.start : classes.stop], 5), 0.999) == []


@pytest.mark.parametrize("block", [1, 2])
def test_rows_that_all_point_apart_have_a_nearest_and_of_equal_ones_the_first_counts(block: int) -> None:
    for rows_CD, cosine, want in (
        (torch.tensor([[1.0, 0], [-3, 0]]), -1, [1, 0]),
        (torch.tensor([[1.0, 0], [1, 0], [2, 0]]), 1, [1, 0, 0]),
    ):
        best, whose = nearest_rows(lambda classes, rows=rows_CD: rows[classes.start : classes.stop], len(want), block)  # type: ignore[misc]
        assert best.tolist() == [cosine] * len(want) and whose.tolist() == want


def test_equal_pairs_are_in_the_order_of_their_classes_and_one_at_the_cosine_is_not_above_it() -> None:
    whose = torch.tensor([1, 0, 4, 1, 2])
    named = [pair[:2] for pair in pairs_above(torch.full((5,), 0.75), whose, 0.5)]
    assert named == [(0, 1), (1, 3), (2, 4)]
    best = torch.tensor([0.75, 0.75, 0.875, 0.5, 0.875])
    assert pairs_above(best, whose, 0.5) == [(2, 4, 0.875), (0, 1, 0.75)]
