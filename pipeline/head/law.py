"""The gradient law's one factor: what makes an embedding's gradient right in the trainer around the head.

The head's loss is the mean over the batch of its group, and the gradient of an embedding is complete on the rank that
has it. So the gradients that the group's ranks make of it for the backbone are parts of one sum; and where groups
replicate the classes, each with the loss of its own part of the batch, the mean over groups is wanted.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch

from cluster.ranks.collectives import Group, num_ranks

BackboneGradient: TypeAlias = Literal["averaged", "summed"]
"""What the trainer does with the backbone's gradient over all ranks: DDP, FSDP and DeepSpeed average it."""


def factor_of(backbone_gradient: BackboneGradient, group: Group, replicas: Group) -> float:
    """By what the embeddings' gradient is multiplied.

    Of N ranks a group and R replicas the trainer sees N·R. A sum over the group, averaged over replicas, is N times the
    mean over all, and 1/R of their sum.

    Raises:
        ValueError: for another word.
    """
    if backbone_gradient not in ("averaged", "summed"):
        raise ValueError(f"backbone_gradient: got {backbone_gradient!r}, wanted 'averaged' or 'summed'")
    return num_ranks(group) if backbone_gradient == "averaged" else 1 / num_ranks(replicas)


def scale_gradient(values: torch.Tensor, factor: float) -> torch.Tensor:
    """`values`, whose gradient is multiplied by `factor`, in its own type."""
    return values if factor == 1 else _ScaleGradient.apply(values, factor)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.factor, None
