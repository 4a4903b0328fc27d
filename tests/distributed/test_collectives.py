"""Collectives and their gradients against plain sums over the ranks' inputs."""

from dataclasses import astuple
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from cluster.ranks import collective_rates
from cluster.ranks.collective_rates import RingRates, bytes_per_work_second, ring_rates
from cluster.ranks.collectives import any_rank, gather_objects, gather_rows, max_over_ranks, sum_over_ranks
from tests.distributed.ranks import run_ranks


def inputs(num_ranks: int) -> list[torch.Tensor]:
    return [
        torch.randn(2, 3, generator=torch.Generator().manual_seed(r), dtype=torch.float64) for r in range(num_ranks)
    ]


def rates(device: torch.device) -> torch.Tensor:
    """A ring's, and what it takes from products."""
    matrix = torch.randn(256, 256)
    ring = ring_rates(device, dist.group.WORLD)
    return torch.tensor([*astuple(ring), bytes_per_work_second(lambda: matrix @ matrix, ring, device)])


def on_a_rank(rank: int, num_ranks: int) -> dict[str, torch.Tensor]:
    group = dist.group.WORLD
    x = inputs(num_ranks)[rank].requires_grad_()
    kept = x.detach().clone()
    gathered = gather_rows(x, group)
    # a different downstream weight on each rank, as each rank's rows are different
    (gathered * (rank + 1)).sum().backward()
    gather_grad, x.grad = x.grad, None
    summed = sum_over_ranks(x, group)
    (summed * 3).sum().backward()
    sum_grad: torch.Tensor | None = x.grad
    assert gather_grad is not None and sum_grad is not None
    assert torch.equal(x.detach(), kept), "a collective changed its input"
    return {
        "gathered": gathered.detach(),
        "gather_grad": gather_grad,
        "summed": summed.detach(),
        "sum_grad": sum_grad,
        "maximum": max_over_ranks(x, group),
        "any": torch.tensor([any_rank(rank == 1, group, x.device), any_rank(False, group, x.device)]),
        "objects": torch.tensor(gather_objects(rank * 10, group)),
        "ring": rates(x.device) if num_ranks > 1 else torch.ones(1),
    }


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_forward_and_backward(num_ranks: int) -> None:
    every = inputs(num_ranks)
    for got in run_ranks(on_a_rank, num_ranks):
        assert torch.equal(got["gathered"], torch.cat(every))
        assert torch.equal(got["gather_grad"], torch.full((2, 3), sum(range(1, num_ranks + 1)), dtype=torch.float64))
        torch.testing.assert_close(got["summed"], torch.stack(every).sum(0))
        assert torch.equal(got["sum_grad"], torch.full((2, 3), 3.0, dtype=torch.float64))
        assert torch.equal(got["maximum"], torch.stack(every).amax(0))
        assert got["any"].tolist() == [num_ranks > 1, False]
        assert bool((got["ring"] > 0).all() and got["ring"].isfinite().all())
        assert got["objects"].tolist() == [r * 10 for r in range(num_ranks)]


def what_is_lost(rank: int, _: int) -> dict[str, Any]:
    """Of computing that takes 2 s alone, and 2.5 s beside a ring that sends for 60% of that."""
    ring, device = RingRates(1e6 * (1 + rank), 1e-3), torch.device("cpu")
    with mock.patch.object(collective_rates, "fastest", mock.Mock(side_effect=[2.0, 2.5])):
        known = bytes_per_work_second(lambda: None, ring, device)
    with mock.patch.object(collective_rates, "fastest", mock.Mock(side_effect=[2.0, 2.0])):
        nothing = bytes_per_work_second(lambda: None, ring, device)
    return {"known": known, "nothing": nothing}


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_what_a_ring_takes_from_computing(num_ranks: int) -> None:
    sent = 0.6 * 2 * 1e6  # on all ranks as much as the slowest sends in that time
    for found in run_ranks(what_is_lost, num_ranks):
        assert found["known"] == pytest.approx(sent / 0.5, rel=1e-5)
        assert found["nothing"] == pytest.approx(sent / 1e-9, rel=1e-5), "beside a GPU's products it may take nothing"


def test_without_a_group_everything_is_the_identity() -> None:
    x = inputs(1)[0]
    assert gather_rows(x, None) is x
    assert sum_over_ranks(x, None) is x
    assert torch.equal(max_over_ranks(x, None), x)
    assert gather_objects("a", None) == ["a"]
