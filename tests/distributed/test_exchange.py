"""Gradients that are averaged under the backward pass: their mean, their order, what is sent, on 1, 2 and 3 ranks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cluster.ranks import exchange
from cluster.ranks.exchange import GradientExchange, in_buckets
from tests.distributed.ranks import run_ranks
from tests.distributed.test_training import recipe, train_on
from tests.faces import write_shards

UNUSED = 2  # a layer that the last rank leaves out


class Network(nn.Module):
    """Layers of uneven sizes, one with its weights channels last, one that not every rank uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.layers = nn.ModuleList(nn.Linear(5, 5, bias=number % 2 == 0) for number in range(5))

    def forward(self, images: torch.Tensor, left_out: int | None) -> torch.Tensor:
        x = self.conv(images).mean((2, 3))
        for number, layer in enumerate(self.layers):
            x = x if number == left_out else torch.tanh(layer(x)) + x
        return x


def micro_batches(rank: int) -> Iterator[tuple[torch.Tensor, bool]]:
    """Images of two micro-batches, and whether they are the last."""
    generator = torch.Generator().manual_seed(rank)
    for last in (False, True):
        yield torch.randn(2, 3, 6, 6, generator=generator), last


def own_gradients(rank: int, ranks: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What a rank contributes, summed over micro-batches; zeros for what it does not use."""
    network = Network().to(dtype)
    for images, _ in micro_batches(rank):
        network(images.to(dtype), UNUSED if rank == ranks - 1 else None).square().sum().backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in network.named_parameters()}


def exchanged(rank: int, ranks: int, dtype: torch.dtype, early: bool) -> dict[str, Any]:
    """The gradients after the exchange, and how many buckets had been sent when the first layer's gradient came."""
    network, sending = Network(), threading.Event()
    parameters = list(network.parameters())
    sent_before_the_end = []
    with (
        mock.patch.object(exchange, "_LEAST_BYTES", 64),
        mock.patch.object(exchange, "_MOST_BYTES", 160),
        mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as sends,
    ):
        buckets = in_buckets(parameters)
        averaging = GradientExchange(parameters, dist.group.WORLD, dtype, sending.is_set)
        parameters[0].register_post_accumulate_grad_hook(lambda _: sent_before_the_end.append(sends.call_count))
        for images, last in micro_batches(rank):
            if last and early:
                sending.set()
            network(images, UNUSED if rank == ranks - 1 else None).square().sum().backward()
            averaging.finish()
        if not early:
            sending.set()
            averaging.finish()
        assert sends.call_count == len(buckets)
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in parameters)
    return {
        "gradients": {name: p.grad for name, p in network.named_parameters()},
        "sent": sent_before_the_end,
        "buckets": len(buckets),
    }


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_rank_has_the_mean_and_most_is_sent_before_the_backward_pass_ends(ranks: int) -> None:
    results = run_ranks(exchanged, ranks, torch.float32, True)
    wanted = [own_gradients(rank, ranks, torch.float64) for rank in range(ranks)]
    for name, gradient in results[0]["gradients"].items():
        mean = torch.stack([own[name] for own in wanted]).mean(0)
        torch.testing.assert_close(gradient.double(), mean, rtol=1e-5, atol=1e-6, msg=name)
        assert all(torch.equal(result["gradients"][name], gradient) for result in results)
    first, last = results[0]["sent"]
    assert first == 0, "a micro-batch was sent that is not the last"
    if ranks == 1:  # the last rank waits for what it does not use
        assert last < results[0]["buckets"]
    else:
        assert results[0]["buckets"] > 4
        assert last >= results[0]["buckets"] - 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_when_it_is_sent_changes_no_bit_and_bfloat16_rounds(dtype: torch.dtype) -> None:
    under, after = (run_ranks(exchanged, 3, dtype, early)[0]["gradients"] for early in (True, False))
    wanted = [own_gradients(rank, 3, torch.float64) for rank in range(3)]
    for name, gradient in under.items():
        assert torch.equal(gradient, after[name])
        owns = torch.stack([own[name] for own in wanted])
        # each number is rounded to 8 bits when it is sent, and so is each partial sum
        bound = 0 if dtype == torch.float32 else owns.abs().sum(0) * 2**-8
        assert ((gradient.double() - owns.mean(0)).abs() <= bound + 1e-5 * owns.abs().sum(0) + 1e-6).all()


def in_two_steps(rank: int, _: int) -> list[dict[str, torch.Tensor]]:
    """The gradients after each of two steps, of which the second leaves a layer out on every rank."""
    network = Network()
    averaging = GradientExchange(list(network.parameters()), dist.group.WORLD, torch.float32, lambda: True)
    found = []
    for number, (images, _) in enumerate(micro_batches(rank)):
        network(images, UNUSED if number else None).square().sum().backward()
        averaging.finish()
        found.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
        network.zero_grad()
    return found


def test_a_step_has_nothing_of_the_step_before() -> None:
    for number, gradients in enumerate(run_ranks(in_two_steps, 2)[0]):
        means = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in Network().named_parameters()}
        for rank in range(2):
            network = Network().double()
            images, _ = list(micro_batches(rank))[number]
            network(images.double(), UNUSED if number else None).square().sum().backward()
            for name, p in network.named_parameters():
                if p.grad is not None:
                    means[name] += p.grad / 2
        assert gradients.keys() == means.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient.double(), means[name], rtol=1e-5, atol=1e-6, msg=name)


def test_buckets_hold_every_parameter_from_the_last_to_the_first_and_get_smaller() -> None:
    parameters = [nn.Parameter(torch.empty(size << 18, device="meta")) for size in (1, 0, 2, 8, 30, 60, 3, 90)]  # MiB
    buckets = in_buckets(parameters)
    assert [p for bucket in buckets for p in bucket] == parameters[::-1]
    assert [[p.nbytes >> 20 for p in bucket] for bucket in buckets] == [[90], [3, 60], [30], [8], [2], [0, 1]]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_in_bfloat16_on_the_wire_sends_half_and_follows(tmp_path: Path, stage: Literal[0, 1, 2, 3]) -> None:
    shards = write_shards(tmp_path / "set", identities=7, images=6)
    plain = recipe(shards)
    few = plain.optimizer.model_copy(update={"steps": 4})
    full, half = (
        run_ranks(train_on, 2, recipe(shards, optimizer=few, zero_stage=stage, exchange=dtype), tmp_path / dtype)[0]
        for dtype in ("float32", "bfloat16")
    )
    assert half["losses"][0] == full["losses"][0]
    assert half["losses"] == pytest.approx(full["losses"], rel=1e-3)
    assert half["losses"] != full["losses"]
    # ZeRO gathers parameters in fp32: one pass, or two under ZeRO 3
    passes = {0: (2, 0), 1: (1, 1), 2: (1, 1), 3: (1, 2)}[stage]
    reduced, gathered = passes
    assert half["sent"][0][1] / full["sent"][0][1] == pytest.approx((reduced / 2 + gathered) / sum(passes), rel=1e-6)
