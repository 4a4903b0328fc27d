"""The head's inner loop: from features and rows to log-sum-exp and gradients, by the kernel that fits the device."""

import torch

from pipeline.head.kernels.blocks import BlockLoop
from pipeline.head.kernels.kernel import BLOCK, FusedUpdate, Kernel, Scoring, Sink
from pipeline.head.margins import Margin

__all__ = ["BLOCK", "BlockLoop", "FusedUpdate", "Kernel", "Scoring", "Sink", "choose"]


def choose(device_type: str, dtype: torch.dtype, margin: Margin) -> Kernel:  # noqa: ARG001 - there is one kernel yet
    """The kernel for a device ("cpu", "cuda"), a type of the products and a margin: the one place where it is chosen.

    A kernel is a file in this folder and a line here; one that cannot compute every `Warp` asks for ``margin.warp``.
    """
    return BlockLoop()
