"""The optimizer of the head's rows on one rank: their slots, and the update of any part of them."""

from __future__ import annotations

import torch

from pipeline.optim.optimizer import Optimizer

_ROUNDING = 1e-5  # what is left of a row's length after it was divided by it, with room


class RowOptimizer:
    """The slots of rows [S, D], and their update by an optimizer, on any part of them at a time.

    Rows that are not named are not touched, nor are their slots.

    Args:
        weight_SD: the rows, changed in place.
        optimizer: how they are updated.
        unit: whether rows have length 1, now and after each update.

    Attributes:
        optimizer, unit: as given.
        slots: by name, [S, D] or [S].
    """

    @torch.no_grad()
    def __init__(self, weight_SD: torch.Tensor, optimizer: Optimizer, unit: bool = False) -> None:
        self._weight_SD, self.optimizer, self.unit = weight_SD, optimizer, unit
        if unit:
            _to_unit_length(weight_SD)
        self.slots = {slot.name: slot.zeros_for_rows(weight_SD) for slot in optimizer.slots}

    @torch.no_grad()
    def rows_loaded(self) -> None:
        """Bring rows from elsewhere to length 1, if they are to have it; those that have it keep every bit."""
        if self.unit:
            length_S1 = self._weight_SD.norm(dim=1, keepdim=True).clamp_(min=1e-12)
            has_it = (length_S1 - 1).abs() <= _ROUNDING
            self._weight_SD.div_(torch.where(has_it, torch.ones_like(length_S1), length_S1))

    @torch.no_grad()
    def apply(
        self,
        rows: slice | torch.Tensor,
        grad_nD: torch.Tensor,
        learning_rate: float,
        dropped: torch.Tensor | None = None,
    ) -> None:
        """Update `rows` (a slice, or row numbers without repeats) with their gradient, which is used up.

        Not if `dropped`, a float32 scalar on their device, is 1.
        """
        weight_nD = self._weight_SD[rows]
        slots = {name: slot[rows] for name, slot in self.slots.items()}
        if dropped is None:
            self.optimizer.update_rows(weight_nD, slots, grad_nD, learning_rate)
        else:
            self.optimizer.update_rows_unless(dropped, weight_nD, slots, grad_nD, learning_rate)
        if self.unit:
            _to_unit_length(weight_nD, dropped)
        if isinstance(rows, slice):
            return
        # row numbers gave copies
        self._weight_SD[rows] = weight_nD
        for name, part in slots.items():
            self.slots[name][rows] = part


def _to_unit_length(rows_nD: torch.Tensor, dropped: torch.Tensor | None = None) -> None:
    length_n1 = rows_nD.norm(dim=1, keepdim=True).clamp_(min=1e-12)
    if dropped is not None:
        # A dropped step leaves every bit; a row's length is 1 but for rounding.
        length_n1 = torch.where(dropped > 0, torch.ones_like(length_n1), length_n1)
    rows_nD.div_(length_n1)
