"""The bias of binary classifications: one number that is learned as the rows are, the same on every rank."""

from __future__ import annotations

import torch
from torch import nn

from cluster.ranks.collectives import Group, average_over_ranks_, sum_over_ranks
from pipeline.optim import Optimizer


class LearnedBias(nn.Module):
    """A number, with what the optimizer keeps of it: to the optimizer it is a row of one number.

    Args:
        initial: before the first step.
        optimizer: the rows'; None if nothing is learned.
        group: the ranks that share the classes: each has a part of the gradient.
        replicas: the ranks over which row gradients are averaged.
    """

    bias: torch.Tensor

    def __init__(self, initial: float, optimizer: Optimizer | None, group: Group, replicas: Group) -> None:
        super().__init__()
        self._initial, self._group, self._replicas = initial, group, replicas
        self.register_buffer("bias", torch.full((1, 1), initial))
        self._optimizer = optimizer
        for slot in optimizer.slots if optimizer else ():
            self.register_buffer(f"bias_{slot.name}", slot.zeros_for_rows(self.bias))
        self._leaves: list[torch.Tensor] = []

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The bias [1, 1] and its slots by name, live."""
        return dict(self.named_buffers())

    @torch.no_grad()
    def begin(self) -> None:
        """Set the bias and its slots to what they are before the first step."""
        for value in self.tensors.values():
            value.zero_()
        self.bias.fill_(self._initial)

    def leaf(self) -> torch.Tensor:
        """The bias as a scalar for one forward pass, which its backward pass, if there is one, gives a gradient."""
        leaf = self.bias.detach().clone().view(())
        if torch.is_grad_enabled():
            self._leaves.append(leaf.requires_grad_())
        return leaf

    @torch.no_grad()
    def update(self, learning_rate: float, dropped: torch.Tensor | None) -> None:
        """Apply the gradients since the last update, unless `dropped`, a scalar, is 1. An all-reduce of a number."""
        grads = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        self.forget()
        if self._optimizer is None or not grads:
            return
        grad = sum_over_ranks(torch.stack(grads).sum(), self._group)
        average_over_ranks_(grad, self._replicas)
        slots = {slot.name: self.get_buffer(f"bias_{slot.name}") for slot in self._optimizer.slots}
        if dropped is None:
            self._optimizer.update_rows(self.bias, slots, grad.view(1, 1), learning_rate)
        else:
            self._optimizer.update_rows_unless(dropped, self.bias, slots, grad.view(1, 1), learning_rate)

    def forget(self) -> None:
        """Drop the gradients since the last update."""
        self._leaves.clear()
