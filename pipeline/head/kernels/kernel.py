"""What a kernel of the head is: its forward and backward pass, its memory, and what takes the gradient of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pipeline.head.margins import Margin, Warp
from pipeline.optim.rows import Rows


@dataclass(frozen=True)
class Scoring:
    """How logits come from features and rows.

    Attributes:
        normalise_rows: multiply with w/‖w‖.
        warp: what happens to the logits of the non-target classes; None: nothing.
        dtype: of the products' factors (float32 or bfloat16); sums and results stay in the features' type.
        block: classes held at a time, at most.
    """

    normalise_rows: bool
    warp: Warp | None = None
    dtype: torch.dtype = torch.float32
    block: int = field(kw_only=True)


@dataclass(frozen=True)
class FusedUpdate:
    """The update of the rows that take part.

    Attributes:
        rows: all of them, with their optimizer and its slots.
        learning_rate: of this step.
    """

    rows: Rows
    learning_rate: float


class RowGradient:
    """The gradient of the rows that take part, summed over micro-batches.

    Rows with an optimizer of their own end a step by `forget`. Without one, another's optimizer does by clearing or
    zeroing ``weight_SD.grad``, as it does with any parameter: as long as there is one, it is added to.

    Args:
        rows: all rows.

    Attributes:
        part: how many take part; None: all, and their gradient is ``weight_SD.grad``.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._memory: torch.Tensor | None = None
        self._held = self._adds = False
        self.part: int | None = None

    @property
    def holds(self) -> bool:
        """Whether a gradient is held that the next is added to; if not, what the memory holds was used up."""
        if self.part is not None:
            return self._held
        return self._rows.weight_SD.grad is not None and (self._held or self._rows.optimizer is None)

    @property
    def held_bytes(self) -> int:
        """Bytes of its memory."""
        return sum(tensor.nbytes for tensor in (self._rows.weight_SD.grad, self._memory) if tensor is not None)

    def use(self, part: int | None) -> None:
        """As many rows take part from here on, or all (None); the memory of the other way is given back."""
        if part is None:
            self._memory = None
        else:
            self._rows.weight_SD.grad = None
        self.part = part

    def memory(self) -> torch.Tensor:
        """Where it lies [part, D]: the same from step to step, since gigabytes of fresh memory cost page faults."""
        weight_SD, part = self._rows.weight_SD, self.part
        if part is None:
            if weight_SD.grad is None:
                weight_SD.grad = torch.empty_like(weight_SD)
            return weight_SD.grad
        if self._memory is None or len(self._memory) < part:
            # A little more than now: the number of sampled rows differs from step to step.
            self._memory = weight_SD.detach().new_empty(part + part // 16, weight_SD.shape[1])
        return self._memory[:part]

    def take(self, start: int, grad: torch.Tensor) -> None:
        """A block, from row `start` on; see `Sink`."""
        if start == 0:  # before there is memory for it
            self._adds = self.holds
        whole = self.memory()
        place = whole[start : start + grad.shape[0]]
        if self._adds:
            place.add_(grad)
        else:
            place.copy_(grad)
        if start + grad.shape[0] == whole.shape[0]:  # the last block
            self.taken()

    def taken(self) -> None:
        """The memory holds a whole gradient."""
        self._held = True

    def forget(self) -> None:
        """The gradient was used up, or is not wanted."""
        self._held = False
        if self._rows.optimizer is None:
            self._rows.weight_SD.grad = None


@dataclass(frozen=True)
class Sink:
    """What takes the rows' gradient, a block at a time, in the backward pass.

    Attributes:
        take: called once for each block, by rising rows, with (first row, gradient [block, D]); it may overwrite the
            gradient, and it may change those rows in place.
        instead: what a kernel may do itself instead of calling `take`; None: only `take` will do, because replicas
            average first.
    """

    take: Callable[[int, torch.Tensor], None]
    instead: FusedUpdate | RowGradient | None = None


class Kernel(Protocol):
    """Softmax over the rows of one rank. Purely local: no collective."""

    def nontarget_logsumexp(
        self,
        features_GD: torch.Tensor,
        weight_SD: torch.Tensor,
        target_G: torch.Tensor,
        scoring: Scoring,
        sink: Sink | None = None,
        rows_n: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-sum-exp of every sample's logits over these rows but its target's, and its target's row.

        Gradients flow to `features_GD` and `weight_SD` from both results. Logits of any size are safe.

        Args:
            features_GD: what the rows are multiplied with.
            weight_SD: the rows.
            target_G: int64, each sample's target class as a number among the rows that take part, or -1 if it is not
                there.
            scoring: how logits come from these.
            sink: takes each block of the rows' gradient as soon as it exists; ``weight_SD.grad`` then stays as it is.
                None: the gradient is autograd's.
            rows_n: int64, rising, the rows that take part, which are read and updated where they lie; None: all. They
                need a sink, which counts among them.

        Returns:
            logsumexp [G] (-inf if there is no non-target class here) and raw target rows [G, D] (zeros if the target
            is -1).
        """

    def block_of(self, *, batch: int, embedding_dim: int, dtype: torch.dtype) -> int:
        """Classes held at a time if the recipe gives no number; the arguments are those of `memory_bytes`."""

    def memory_bytes(
        self, *, rows: int, batch: int, embedding_dim: int, dtype: torch.dtype, block: int | None, margin: Margin
    ) -> int:
        """Bytes at the fullest moment of forward and backward, beyond the rows, their gradient and optimizer state.

        Args:
            rows: S, classes on this rank.
            batch: G, samples in one call.
            embedding_dim: D.
            dtype: of the products' factors.
            block: classes held at a time, at most; None: `block_of`.
            margin: what is computed.
        """
