"""Activation checkpointing: parts of a network keep their input alone, and compute the rest again when it is needed.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174. The second forward pass draws the same
random numbers as the first and leaves batch norms' statistics alone: losses, gradients and buffers are, bit for bit,
what they are without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Let these modules, none inside another, keep nothing but their input from a training forward pass to backward.

    Their parameters' names stay as they are: only their ``forward`` is replaced.
    """
    for block in blocks:
        block.forward = _recomputing(block, block.forward)


def _recomputing(block: nn.Module, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    norms = [module for module in block.modules() if isinstance(module, _NORMS)]

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _statistics_left_alone(norms)

    def recomputing(*args: torch.Tensor) -> torch.Tensor:
        if not block.training:  # nothing is kept then, and statistics are read
            return forward(*args)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts)

    return recomputing


@contextmanager
def _statistics_left_alone(norms: list[Any]) -> Iterator[None]:
    """Let batch norms compute as in training, but move their running statistics by nothing, and count no step.

    (If the batch holds a NaN they become one even so; such a step is dropped, and buffers are put back.)
    """
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counted
