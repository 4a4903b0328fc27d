"""The optimizer of the head's rows on one rank: their slots, and the update of any part of them."""

from __future__ import annotations

import torch

from pipeline.optim.optimizer import Optimizer


class RowOptimizer:
    """The slots of rows [S, D], and their update by an optimizer, on any part of them at a time.

    Rows that are not named are not touched, nor are their slots.

    Args:
        weight_SD: the rows, changed in place.
        optimizer: how they are updated.

    Attributes:
        optimizer: how they are updated.
        slots: by name, [S, D] or [S].
    """

    def __init__(self, weight_SD: torch.Tensor, optimizer: Optimizer) -> None:
        self._weight_SD, self.optimizer = weight_SD, optimizer
        self.slots = {slot.name: slot.zeros_for_rows(weight_SD) for slot in optimizer.slots}

    @torch.no_grad()
    def apply(self, rows: slice | torch.Tensor, grad_nD: torch.Tensor, learning_rate: float) -> None:
        """Update `rows` (a slice, or row numbers without repeats) with their gradient, which is used up."""
        weight_nD = self._weight_SD[rows]
        slots = {name: slot[rows] for name, slot in self.slots.items()}
        self.optimizer.update_rows(weight_nD, slots, grad_nD, learning_rate)
        if isinstance(rows, slice):
            return
        # row numbers gave copies
        self._weight_SD[rows] = weight_nD
        for name, part in slots.items():
            self.slots[name][rows] = part
