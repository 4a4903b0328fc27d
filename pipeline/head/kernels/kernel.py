"""What a kernel of the head is: its forward and backward pass, its memory, and what takes the gradient of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from pipeline.head.margins import Warp
from pipeline.optim.rows import RowOptimizer


@dataclass(frozen=True)
class Scoring:
    """How logits come from features and rows.

    Attributes:
        normalise_rows: multiply with w/‖w‖.
        warp: what happens to the logits of the non-target classes; None: nothing.
        dtype: of the products' factors (float32 or bfloat16); sums and results stay in the features' type.
        block: classes held at a time, at most; None: as many as suit the kernel and the device.
    """

    normalise_rows: bool
    warp: Warp | None = None
    dtype: torch.dtype = torch.float32
    block: int | None = None


@dataclass(frozen=True)
class FusedUpdate:
    """The update that a kernel may do itself: of exactly the rows that it was given.

    Attributes:
        optimizer: of those rows, with its state of each.
        learning_rate: of this step.
    """

    optimizer: RowOptimizer
    learning_rate: float


@dataclass(frozen=True)
class Sink:
    """What takes the rows' gradient, a block at a time, in the backward pass; the whole gradient is then never held.

    Attributes:
        take: called once for each block, by rising rows, with (first row, gradient [block, D]); it may overwrite the
            gradient, and it may change those rows in place.
        update: what a kernel may do with a block's gradient instead of calling `take`; None: only `take` will do,
            because replicas average first, micro-batches are summed, or the rows are copies.
    """

    take: Callable[[int, torch.Tensor], None]
    update: FusedUpdate | None = None


class Kernel(Protocol):
    """Softmax over the rows of one rank. Purely local: no collective."""

    def nontarget_logsumexp(
        self,
        features_GD: torch.Tensor,
        weight_SD: torch.Tensor,
        target_G: torch.Tensor,
        scoring: Scoring,
        sink: Sink | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-sum-exp of every sample's logits over these rows but its target's, and its target's row.

        Gradients flow to `features_GD` and `weight_SD` from both results. Logits of any size are safe.

        Args:
            features_GD: what the rows are multiplied with.
            weight_SD: the rows.
            target_G: int64, each sample's target class as a row number here, or -1 if it is not here.
            scoring: how logits come from these.
            sink: takes each block of the rows' gradient as soon as it exists; ``weight_SD.grad`` then stays as it is.
                None: the gradient is autograd's.

        Returns:
            logsumexp [G] (-inf if there is no non-target class here) and raw target rows [G, D] (zeros if the target
            is -1).
        """

    def block_of(self, *, batch: int, embedding_dim: int, dtype: torch.dtype) -> int:
        """Classes held at a time if nobody says how many; the arguments are those of `memory_bytes`."""

    def memory_bytes(self, *, rows: int, batch: int, embedding_dim: int, dtype: torch.dtype, block: int | None) -> int:
        """Bytes at the fullest moment of forward and backward, beyond the rows, their gradient and optimizer state.

        Args:
            rows: S, classes on this rank.
            batch: G, samples in one call.
            embedding_dim: D.
            dtype: of the products' factors.
            block: classes held at a time, at most; None: `block_of`.
        """
