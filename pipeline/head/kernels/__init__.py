"""The head's inner loop: from features and rows to log-sum-exp and gradients, by the kernel that fits the device."""

from importlib.util import find_spec

import torch

from pipeline.head.kernels.blocks import BlockLoop
from pipeline.head.kernels.kernel import FusedUpdate, Kernel, Scoring, Sink

__all__ = ["BlockLoop", "FusedUpdate", "Kernel", "Scoring", "Sink", "choose"]


def choose(device_type: str, dtype: torch.dtype) -> Kernel:
    """The kernel for a device ("cpu", "cuda") and a type of the products: the one place where it is chosen.

    A kernel is a file in this folder and a line here. Every kernel computes every margin: what a margin asks of it is
    in `Scoring`. Triton comes with PyTorch's builds for CUDA; float64 is for tests, whose references it is.
    """
    if device_type == "cuda" and dtype != torch.float64 and find_spec("triton") is not None:
        from pipeline.head.kernels.triton_loop import TritonLoop  # noqa: PLC0415 - Triton may be absent

        return TritonLoop()
    return BlockLoop()
