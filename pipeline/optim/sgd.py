"""SGD with momentum, as `torch.optim.SGD` computes it: the optimizer of the papers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from pydantic import Field

from pipeline.optim.optimizer import OPTIMIZERS, Optimizer, Slot


@OPTIMIZERS.add("sgd")
class SGD(Optimizer):
    """SGD with momentum; weight decay is an L2 penalty, added to the gradient. For backbone and head alike."""

    slots: ClassVar = (Slot("momentum", "momentum_buffer"),)
    fused_on: ClassVar = frozenset({"cuda"})
    """Types of devices on which torch's fused kernel is used. On a CPU it would round otherwise, for nothing."""

    name: str = "sgd"
    """Which optimizer this is."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """μ; no dampening, not Nesterov."""

    def update_rows(
        self, weight_nD: torch.Tensor, slots: Mapping[str, torch.Tensor], grad_nD: torch.Tensor, learning_rate: float
    ) -> None:
        """v ← μ v + (g + λ w); w ← w - η v, with the momentum v, the weight decay λ and the learning rate η."""
        grad_nD.add_(weight_nD, alpha=self.weight_decay)
        momentum_nD = slots["momentum"].mul_(self.momentum).add_(grad_nD)
        weight_nD.sub_(momentum_nD, alpha=learning_rate)

    def update_rows_unless(
        self,
        dropped: torch.Tensor,
        weight_nD: torch.Tensor,
        slots: Mapping[str, torch.Tensor],
        grad_nD: torch.Tensor,
        learning_rate: float,
    ) -> None:
        """See `Optimizer`. On a GPU one kernel of torch's, which reads `dropped`: one pass over what it changes."""
        if weight_nD.device.type not in self.fused_on:
            super().update_rows_unless(dropped, weight_nD, slots, grad_nD, learning_rate)
            return
        torch._fused_sgd_(
            [weight_nD],
            [grad_nD],
            [slots["momentum"]] if self.momentum else [],
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,  # torch's own begins by copying the gradient: the same as from zero
            found_inf=dropped,
        )

    def for_backbone(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """`torch.optim.SGD`, on a GPU as one kernel for many parameters."""
        parameters = chain.from_iterable(group["params"] for group in groups)
        fused = all(p.device.type in self.fused_on for p in parameters)
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum, fused=fused or None)
