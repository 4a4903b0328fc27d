"""Batch norms whose statistics in training are those of all ranks' images: the same whatever the number of ranks.

Ioffe and Szegedy, "Batch Normalization", ICML 2015. A rank's own mean and variance, of `torch.nn.BatchNorm2d` and its
kin, are those of the images that it happens to hold. Here one all-reduce in the forward pass and one in the backward
pass make them the global micro-batch's, on any device (`torch.nn.SyncBatchNorm` is for GPUs only).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cluster.ranks.collectives import Group, Sent, sum_over_ranks

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

# What these collectives have sent: the backbone's traffic, not the head's.
SENT = Sent()


def batch_norms(network: nn.Module) -> list[BatchNorm]:
    """The batch norms of a network."""
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


def synchronise(network: nn.Module, group: Group) -> None:
    """Let the batch norms of a network take their statistics in training over all ranks of the group.

    From then on a training forward pass has one all-reduce for each of them, of 2·C + 1 float64, and its backward pass
    one of 2·C numbers: every rank must come by. Ranks may hold different numbers of images, at least one each. The
    gradient is that of the sum of the ranks' losses. Running statistics are the same on all ranks. In evaluation
    nothing changes; nor do types and names in the state dict: only each ``forward`` is replaced.
    """
    for norm in batch_norms(network):
        norm.forward = _synchronised(norm, norm.forward, group)  # type: ignore[assignment, method-assign]


def _synchronised(
    norm: BatchNorm, forward: Callable[[torch.Tensor], torch.Tensor], group: Group
) -> Callable[[torch.Tensor], torch.Tensor]:
    def synchronised(x: torch.Tensor) -> torch.Tensor:
        if not norm.training:  # running statistics, and no collective
            return forward(x)
        mean_C, variance_C, count = _statistics(x, group)
        _follow(norm, mean_C, variance_C * count / (count - 1))
        dtype = torch.promote_types(x.dtype, torch.float32)
        return _Normalise.apply(x, norm.weight, norm.bias, mean_C.to(dtype), variance_C.to(dtype), count, norm, group)

    return synchronised


@torch.no_grad()
def _statistics(x: torch.Tensor, group: Group) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel over all ranks, and the count of its values: float64, on the device.

    Sums of squares cancel if the mean is large: in float64 nothing is lost of what float32 has.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance_C, mean_C = (part.double() for part in torch.var_mean(wide, _but_channels(x), correction=0))
    count = mean_C.new_full((1,), x.numel() // x.shape[1])
    packed = torch.cat([mean_C * count, (variance_C + mean_C**2) * count, count])
    sums = sum_over_ranks(packed, group, SENT)
    count = sums[-1]
    mean_C, square_C = (sums[:-1] / count).chunk(2)
    return mean_C, (square_C - mean_C**2).clamp(min=0), count


@torch.no_grad()
def _follow(norm: BatchNorm, mean_C: torch.Tensor, unbiased_C: torch.Tensor) -> None:
    """Move the running statistics as torch does."""
    if norm.running_mean is None or norm.running_var is None:
        return
    momentum: Any = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # the mean of all batches so far
            momentum = 1 / norm.num_batches_tracked
    for running_C, now_C in ((norm.running_mean, mean_C), (norm.running_var, unbiased_C)):
        running_C.copy_(running_C * (1 - momentum) + now_C * momentum)


class _Normalise(torch.autograd.Function):
    """(x - mean) / √(variance + ε) · weight + bias, with mean and variance functions of the x of all ranks.

    It keeps what torch's own batch norm keeps. `F.batch_norm` with given statistics is one pass over memory; its
    gradients of weight and bias are the two sums that the gradient of x needs of every rank.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_C: torch.Tensor | None,
        bias_C: torch.Tensor | None,
        mean_C: torch.Tensor,
        variance_C: torch.Tensor,
        count: torch.Tensor,
        norm: BatchNorm,
        group: Group,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight_C, mean_C, variance_C, count)
        ctx.eps, ctx.group = norm.eps, group
        return F.batch_norm(x, mean_C, variance_C, weight_C, bias_C, False, 0.0, norm.eps)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, weight_C, mean_C, variance_C, count = ctx.saved_tensors
        scale_C = torch.rsqrt(variance_C + ctx.eps)
        # As if the statistics were constants.
        ones_C = torch.ones_like(mean_C)
        grad_x, of_weight_C, of_bias_C = torch.ops.aten.native_batch_norm_backward(
            grad,
            x,
            ones_C if weight_C is None else weight_C,
            mean_C,
            variance_C,
            mean_C,
            scale_C,
            False,
            ctx.eps,
            [True, True, True],
        )
        # What goes through the statistics: a multiple of the normalised x, and a constant.
        sums_2C = sum_over_ranks(torch.cat([of_weight_C, of_bias_C]), ctx.group, SENT)
        factor_C = scale_C / count.to(scale_C.dtype) * (ones_C if weight_C is None else weight_C)
        by_weight_C, by_bias_C = (sums_2C * torch.cat([factor_C, factor_C])).chunk(2)
        through = F.batch_norm(x, mean_C, variance_C, by_weight_C, by_bias_C, False, 0.0, ctx.eps)
        affine = (None, None) if weight_C is None else (of_weight_C, of_bias_C)
        return grad_x - through, *affine, None, None, None, None, None


def _but_channels(x: torch.Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]
