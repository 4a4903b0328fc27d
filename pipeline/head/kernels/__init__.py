"""The head's inner loop: from features and rows to log-sum-exp and gradients, by the kernel that fits the device."""

import torch

from pipeline.head.kernels.blocks import BlockLoop
from pipeline.head.kernels.kernel import FusedUpdate, Kernel, RowGradient, Scoring, Sink
from pipeline.head.kernels.triton_loop import TritonLoop

__all__ = ["BlockLoop", "FusedUpdate", "Kernel", "RowGradient", "Scoring", "Sink", "TritonLoop", "choose"]


def choose(device_type: str, dtype: torch.dtype) -> Kernel:
    """The kernel for a device ("cpu", "cuda") and a type of the products: the one place where it is chosen.

    A kernel is a file in this folder and a line here. Every kernel computes every margin: what a margin asks of it is
    in `Scoring`. Triton comes with PyTorch's builds for CUDA, and a plan for a GPU needs none.
    """
    return TritonLoop() if device_type == "cuda" and dtype != torch.float64 else BlockLoop()
