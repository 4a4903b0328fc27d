"""What the benchmark of the exchange is measured with: layers that wait, and the least that a step can take."""

from __future__ import annotations

import itertools
import time
from unittest import mock

import pytest
import torch
from torch import nn

from tests.benchmarks.waiting import Layer, Waiting, at_best, measured

LAYERS = [Layer(1, 2, (0, 1)), Layer(3, 4, (2,)), Layer(5, 6, (3, 4))]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 4), nn.PReLU(4), nn.Flatten(), nn.Linear(4, 2))


def test_a_layer_is_measured_with_all_of_its_parameters_in_the_forward_order() -> None:
    unlike = nn.Sequential(nn.Linear(6, 4), nn.PReLU(4), nn.Flatten(), nn.Linear(4, 2, bias=False))
    with mock.patch.object(time, "perf_counter", side_effect=itertools.count()):  # a tick for each layer, each gradient
        layers = measured(unlike, torch.randn(3, 6), rounds=2)
    assert layers == [Layer(1, 2, (0, 1)), Layer(1, 1, (2,)), Layer(1, 1, (3,))]


def test_what_waits_has_the_networks_parameters_and_gradients_and_waits_as_long_in_its_order() -> None:
    whole = network()
    waiting = Waiting(whole, LAYERS, embedding_dim=2)
    made = []
    for number, p in enumerate(waiting.parameters()):
        p.register_post_accumulate_grad_hook(lambda _, number=number: made.append(number))
    with mock.patch.object(time, "sleep") as sleep:
        embeddings = waiting(torch.randn(3, 6))
        assert [call.args[0] for call in sleep.call_args_list] == [1, 3, 5]
        (embeddings * 1e-3).sum().backward()
    assert [call.args[0] for call in sleep.call_args_list] == [1, 3, 5, 6, 4, 2]
    assert embeddings.shape == (3, 2)
    assert [id(p) for p in waiting.parameters()] == [id(p) for p in whole.parameters()]
    assert [set(made[:2]), made[2], set(made[3:])] == [{3, 4}, 2, {0, 1}]  # each layer's when it has waited
    assert all(p.grad is not None and p.grad.shape == p.shape for p in whole.parameters())


@pytest.mark.parametrize(
    ("sending", "wanted"),
    [
        (0.0, 20.0),  # nothing to send
        (7.0, 20 + 7 * 4 / 7),  # all but the last bucket arrives before the first layer's gradients
        (70.0, 20 - 12 + 6 + 70),  # from the last layer's backward pass on the wire is never idle
    ],
)
def test_at_best_a_bucket_is_sent_when_it_is_made_and_the_wire_is_free(sending: float, wanted: float) -> None:
    with torch.device("meta"):
        first, last = nn.Linear(1 << 10, 1 << 10, bias=False), nn.Linear(1 << 9, 3 << 9, bias=False)
        large = nn.Sequential(first, nn.PReLU(1), last)
    layers = [Layer(1, 2, (0,)), Layer(3, 4, (1,)), Layer(5, 6, (2,))]
    assert at_best(large, layers, computing=20, sending=sending) == pytest.approx(wanted, rel=1e-5)
