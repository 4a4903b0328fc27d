"""A network that computes elsewhere, as one on a GPU does: each layer waits for as long as it took; the CPU is free.

Parameters, their order and their gradients' sizes are those of a real network, and each gradient is there when its
layer has waited: what trains it, or sends its gradients, can tell the two apart by the processors' time alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from cluster.ranks.exchange import in_buckets


@dataclass(frozen=True)
class Layer:
    """Seconds of a layer's forward and backward pass, and its parameters by their number in the network."""

    forward: float
    backward: float
    parameters: tuple[int, ...]


def measured(network: nn.Module, images: torch.Tensor, rounds: int) -> list[Layer]:
    """The layers of a chain of them, in order; the least over rounds, after one that is not counted.

    A layer's time runs from the end of the one before to its own, so that what lies between belongs to one of them, and
    all together take as long as the network.
    """
    numbers = {p: number for number, p in enumerate(network.parameters())}
    modules: list[nn.Module] = []
    moments: list[float] = []  # of the forward pass, then of the backward pass

    def passed(module: nn.Module, *_: object) -> None:
        modules.append(module)
        moments.append(time.perf_counter())

    handles = [
        module.register_forward_hook(passed)
        for module in network.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    made: dict[torch.Tensor, float] = {}
    handles += [p.register_post_accumulate_grad_hook(lambda p: made.update({p: time.perf_counter()})) for p in numbers]
    forward, backward = [], []
    for _ in range(rounds + 1):
        modules.clear()
        moments[:] = [time.perf_counter()]
        embeddings = network(images)
        forward.append([end - start for start, end in pairwise(moments)])
        started = time.perf_counter()
        embeddings.sum().backward()
        moments[:] = [started, *(max(made[p] for p in module.parameters(recurse=False)) for module in modules[::-1])]
        backward.append([end - start for start, end in pairwise(moments)][::-1])
        network.zero_grad()
    for handle in handles:
        handle.remove()
    return [
        Layer(
            min(times[at] for times in forward[1:]),
            min(times[at] for times in backward[1:]),
            tuple(numbers[p] for p in module.parameters(recurse=False)),
        )
        for at, module in enumerate(modules)
    ]


def at_best(network: nn.Module, layers: Sequence[Layer], computing: float, sending: float) -> float:
    """Seconds of a step whose every bucket is on the wire as soon as it is made and the one before has arrived.

    What computing takes besides the backward pass, the forward pass and the update, has nothing to send.

    Args:
        network: for the sizes of its parameters.
        layers: the network's.
        computing: seconds of a step that sends nothing.
        sending: seconds of all buckets, which take their time by their bytes.
    """
    made: dict[int, float] = {}
    now = 0.0
    for layer in layers[::-1]:
        now += layer.backward
        made.update(dict.fromkeys(layer.parameters, now))
    parameters = list(network.parameters())
    number_of = {p: number for number, p in enumerate(parameters)}
    per_byte = sending / sum(p.nbytes for p in parameters)
    arrived = 0.0
    for bucket in in_buckets(parameters):
        arrived = max(arrived, *(made[number_of[p]] for p in bucket)) + per_byte * sum(p.nbytes for p in bucket)
    return computing - now + max(now, arrived)


class Waiting(nn.Module):
    """The network with waits in place of its layers: zeros [B, D] for any images, and zeros as gradients."""

    def __init__(self, network: nn.Module, layers: Sequence[Layer], embedding_dim: int) -> None:
        super().__init__()
        self.network, self.embedding_dim = network, embedding_dim
        self._layers = layers
        self._gradients = [torch.zeros_like(p, requires_grad=False) for p in network.parameters()]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Wait for each layer in turn."""
        parameters = list(self.parameters())
        x = images.new_zeros(len(images), self.embedding_dim)
        for layer in self._layers:
            gradients = [self._gradients[number] for number in layer.parameters]
            x = _Wait.apply(x, layer, gradients, *(parameters[number] for number in layer.parameters))
        return x


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        layer: Layer,
        gradients: list[torch.Tensor],
        *parameters: torch.Tensor,  # noqa: ARG004
    ) -> torch.Tensor:
        ctx.layer, ctx.gradients = layer, gradients
        time.sleep(layer.forward)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        time.sleep(ctx.layer.backward)
        # each in a tensor of its own, which autograd takes as the parameter's gradient without a copy
        return grad, None, None, *(gradient.detach() for gradient in ctx.gradients)
