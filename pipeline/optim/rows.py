"""The rows of one rank with what an optimizer keeps of them, and the update of any part of them."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.optim.optimizer import Optimizer

_ROUNDING = 1e-5  # what is left of a row's length after it was divided by it, with room


class Rows(nn.Module):
    """Rows [S, D] and their slots, moved, copied, saved and loaded as one; an update changes any part of them.

    Rows that are not named are not touched, nor are their slots.

    Args:
        weight_SD: the rows, changed in place.
        optimizer: how they are updated; None: not here.
        unit: whether rows have length 1, now and after each update.

    Attributes:
        weight_SD, optimizer, unit: as given.
    """

    def __init__(self, weight_SD: torch.Tensor, optimizer: Optimizer | None, unit: bool = False) -> None:
        super().__init__()
        self.weight_SD = weight_SD if isinstance(weight_SD, nn.Parameter) else nn.Parameter(weight_SD)
        self.optimizer, self.unit = optimizer, unit
        for slot in optimizer.slots if optimizer else ():
            self.register_buffer(slot.name, slot.zeros_for_rows(self.weight_SD))
        self.begin()

    @property
    def slots(self) -> dict[str, torch.Tensor]:
        """What the optimizer keeps, by name: [S, D] or [S], live."""
        return {name: slot for name, slot in self._buffers.items() if slot is not None}

    @torch.no_grad()
    def begin(self) -> None:
        """Make of the rows what they are before the first step: length 1, if they are to have it, and empty slots."""
        if self.unit:
            _to_unit_length(self.weight_SD)
        for slot in self.slots.values():
            slot.zero_()

    @torch.no_grad()
    def loaded(self) -> None:
        """Bring rows from elsewhere to length 1, if they are to have it; those that have it keep every bit."""
        if self.unit:
            length_S1 = self.weight_SD.norm(dim=1, keepdim=True).clamp_(min=1e-12)
            has_it = (length_S1 - 1).abs() <= _ROUNDING
            self.weight_SD.div_(torch.where(has_it, torch.ones_like(length_S1), length_S1))

    @torch.no_grad()
    def update(
        self,
        rows: slice | torch.Tensor,
        grad_nD: torch.Tensor,
        learning_rate: float,
        dropped: torch.Tensor | None = None,
    ) -> None:
        """Update `rows` (a slice, or row numbers without repeats) with their gradient, which is used up.

        Not if `dropped`, a float32 scalar on their device, is 1.
        """
        assert self.optimizer is not None, "an update of rows without an optimizer"
        weight_nD = self.weight_SD[rows]
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
        self.weight_SD[rows] = weight_nD
        for name, part in slots.items():
            self.slots[name][rows] = part


def _to_unit_length(rows_nD: torch.Tensor, dropped: torch.Tensor | None = None) -> None:
    length_n1 = rows_nD.norm(dim=1, keepdim=True).clamp_(min=1e-12)
    if dropped is not None:
        # A dropped step leaves every bit; a row's length is 1 but for rounding.
        length_n1 = torch.where(dropped > 0, torch.ones_like(length_n1), length_n1)
    rows_nD.div_(length_n1)
