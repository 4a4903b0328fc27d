"""The head's inner loop: from features and rows to log-sum-exp and gradients, by the kernel that fits the device."""

import torch

from pipeline.head.kernels.blocks import BlockLoop
from pipeline.head.kernels.kernel import BLOCK, FusedUpdate, Kernel, Scoring, Sink

__all__ = ["BLOCK", "BlockLoop", "FusedUpdate", "Kernel", "Scoring", "Sink", "choose"]


def choose(device_type: str, dtype: torch.dtype) -> Kernel:  # noqa: ARG001 - there is one kernel yet
    """The kernel for a device ("cpu", "cuda") and a type of the products: the one place where it is chosen.

    A kernel is a file in this folder and a line here. Every kernel computes every margin: what a margin asks of it is
    in `Scoring`.
    """
    return BlockLoop()
