"""SGD of rows on any part of them against `torch.optim.SGD` and against a float64 loop."""

from __future__ import annotations

import pytest
import torch

from pipeline.optim.rows import RowOptimizer
from pipeline.optim.sgd import SGD


def test_updates_of_parts_are_torchs_sgd() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 3, generator=generator)
    ours, theirs = weight.clone(), torch.nn.Parameter(weight.clone())
    optimizer = RowOptimizer(ours, SGD(steps=1, learning_rate=1.0, weight_decay=0.01))
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(4):
        grad = torch.randn(7, 3, generator=generator)
        theirs.grad = grad.clone()
        sgd.step()
        optimizer.apply(slice(0, 3), grad[:3].clone(), 0.1)
        optimizer.apply(torch.tensor([4, 3, 6, 5]), grad[[4, 3, 6, 5]], 0.1)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(optimizer.slots["momentum"], sgd.state[theirs]["momentum_buffer"], rtol=1e-6, atol=1e-7)


def updated(rows: slice | torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 2, generator=generator, dtype=torch.float64).to(dtype)
    optimizer = RowOptimizer(weight, SGD(steps=1, learning_rate=1.0, momentum=0.7, weight_decay=0.02))
    for rate in (0.3, 0.1):
        optimizer.apply(rows, torch.randn(3, 2, generator=generator, dtype=torch.float64).to(dtype), rate)
    return weight, optimizer.slots["momentum"]


@pytest.mark.parametrize("rows", [slice(1, 4), torch.tensor([1, 2, 3])], ids=["slice", "numbers"])
def test_the_update_is_the_equation_and_touches_no_other_row(rows: slice | torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 2, generator=generator, dtype=torch.float64).tolist()
    momentum = [[0.0, 0.0] for _ in range(5)]
    for rate in (0.3, 0.1):
        grad = torch.randn(3, 2, generator=generator, dtype=torch.float64).tolist()
        for row in (1, 2, 3):
            for column in (0, 1):
                pull = grad[row - 1][column] + 0.02 * weight[row][column]
                momentum[row][column] = 0.7 * momentum[row][column] + pull
                weight[row][column] -= rate * momentum[row][column]
    for dtype, precision in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        got_weight, got_momentum = updated(rows, dtype)
        for got, want in ((got_weight, weight), (got_momentum, momentum)):
            wanted = torch.tensor(want, dtype=torch.float64)
            torch.testing.assert_close(got.double(), wanted, rtol=0, atol=precision)
    assert all(map(torch.equal, updated(rows, torch.float32), updated(rows, torch.float32)))
    assert all(map(torch.equal, updated(slice(1, 4), torch.float32), updated(torch.tensor([1, 2, 3]), torch.float32)))
