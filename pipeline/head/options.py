"""What the head is told about how to compute, and what it says of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.head.kernels import Kernel


@dataclass(frozen=True)
class HeadOutput:
    """What a step's head computed, the same on every rank of the group.

    Attributes:
        loss: scalar, mean over the valid samples of the group's batch; 0 if there is none.
        target_cosine_G: cos θ to the target class, detached; 0 for ignored samples.
        embedding_norm_G: ‖x‖, detached.
        valid_G: which samples carry a label.
    """

    loss: torch.Tensor
    target_cosine_G: torch.Tensor
    embedding_norm_G: torch.Tensor
    valid_G: torch.Tensor


@dataclass(frozen=True)
class HeadOptions:
    """How the head computes; only `sample_rate` and `unit_rows` change what is computed.

    Attributes:
        dtype: of the products (float32 or bfloat16); rows, sums and the loss stay float32.
        block: classes whose logits are held at a time; None: as many as suit the kernel and the device.
        fused_update: update a block of rows as soon as its gradient exists, in the backward pass: a class costs its row
            and its momentum, 8·D bytes instead of 12·D. Needs the whole step in one backward pass.
        sample_rate: the share of the non-target classes that take part in a step (Partial FC); 1: all, the exact
            softmax, as wherever there are no gradients.
        kernel: what multiplies and sums; None: what `choose` says for the device.
        unit_rows: rows are brought back to length 1 after each update, as the authors' layer does.
        accumulation: backward passes of a step; one more without an update is refused, since it would add up for ever.

    Raises:
        ValueError: for several passes of what works on the gradient of one.
    """

    dtype: torch.dtype = torch.float32
    block: int | None = None
    fused_update: bool = False
    sample_rate: float = 1.0
    kernel: Kernel | None = None
    unit_rows: bool = False
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.accumulation > 1 and (self.fused_update or self.sample_rate < 1):
            other = "fused_update" if self.fused_update else f"sample_rate {self.sample_rate}"
            raise ValueError(f"accumulation: got {self.accumulation} with {other}, wanted 1: it works on one pass")
