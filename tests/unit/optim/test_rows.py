"""Rows that stay of length 1: after updates, dropped steps, and what is loaded into them."""

from __future__ import annotations

import torch

from pipeline.optim.rows import Rows
from pipeline.optim.sgd import SGD

ONES = torch.ones(6)


def unit_rows() -> tuple[torch.Tensor, Rows]:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 3
    return weight, Rows(weight, SGD(steps=1, learning_rate=1.0), unit=True)


def test_rows_have_length_one_from_the_start_and_after_every_update() -> None:
    weight, optimizer = unit_rows()
    torch.testing.assert_close(weight.norm(dim=1), ONES, rtol=0, atol=1e-6)
    optimizer.update(torch.tensor([4, 1]), torch.ones(2, 4), 0.5)
    optimizer.update(slice(0, 3), torch.ones(3, 4), 0.5)
    torch.testing.assert_close(weight.norm(dim=1), ONES, rtol=0, atol=1e-6)


def test_a_dropped_step_leaves_every_bit() -> None:
    weight, optimizer = unit_rows()
    before = weight.clone()
    optimizer.update(slice(0, 6), torch.ones(6, 4), 0.5, dropped=torch.tensor(1.0))
    assert torch.equal(weight, before)
    optimizer.update(slice(0, 6), torch.ones(6, 4), 0.5, dropped=torch.tensor(0.0))
    assert not torch.equal(weight, before)
    torch.testing.assert_close(weight.norm(dim=1), ONES, rtol=0, atol=1e-6)


def test_loaded_rows_are_brought_to_length_one_and_those_that_have_it_keep_every_bit() -> None:
    weight, optimizer = unit_rows()
    optimizer.update(slice(0, 6), torch.ones(6, 4), 0.5)
    saved = weight.clone()
    weight[2] *= 7
    optimizer.loaded()
    assert torch.equal(weight[[0, 1, 3, 4, 5]], saved[[0, 1, 3, 4, 5]])
    torch.testing.assert_close(weight[2], saved[2], rtol=1e-6, atol=1e-7)
    weight[2] = 0
    optimizer.loaded()
    assert not weight[2].any(), "a row without a length keeps none"
