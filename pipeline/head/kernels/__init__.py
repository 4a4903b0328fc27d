"""The head's inner loop: from features and rows to log-sum-exp and gradients, by the kernel that fits the device."""

import torch

from pipeline.head.kernels.blocks import BlockLoop
from pipeline.head.kernels.kernel import FusedUpdate, Kernel, RowGradient, Scoring, Sink
from pipeline.head.kernels.triton_loop import TritonLoop, takes
from pipeline.head.margins import Margin

__all__ = ["BlockLoop", "FusedUpdate", "Kernel", "RowGradient", "Scoring", "Sink", "TritonLoop", "choose"]


def choose(device_type: str, dtype: torch.dtype, margin: Margin) -> Kernel:
    """The kernel for a device ("cpu", "cuda"), a type of the products and a margin: the one place where it is chosen.

    A kernel is a file in this folder and a line here. The block loop computes every margin on every device; the Triton
    programs, many times faster on a GPU, those that they take. Triton comes with PyTorch's builds for CUDA, and a plan
    for a GPU needs none.
    """
    return TritonLoop() if device_type == "cuda" and dtype != torch.float64 and takes(margin) else BlockLoop()
