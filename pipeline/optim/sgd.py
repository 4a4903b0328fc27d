"""SGD with momentum, as `torch.optim.SGD` computes it: the optimizer of the papers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field

from pipeline.optim.optimizer import OPTIMIZERS, Optimizer, Slot


@OPTIMIZERS.add("sgd")
class SGD(Optimizer):
    """SGD with momentum; weight decay is an L2 penalty, added to the gradient. For backbone and head alike."""

    slots: ClassVar = (Slot("momentum", "momentum_buffer"),)

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

    def for_backbone(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """`torch.optim.SGD`."""
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum)
