"""SGD with momentum, as `torch.optim.SGD` computes it: the optimizer of the papers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator

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
    """μ; no dampening."""
    nesterov: bool = False
    """Step by the gradient and the momentum after it, as torch's SGD with nesterov does."""

    @model_validator(mode="after")
    def _has_momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError(f"nesterov: got true with momentum {self.momentum}, wanted a momentum")
        return self

    def update_rows(
        self, weight_nD: torch.Tensor, slots: Mapping[str, torch.Tensor], grad_nD: torch.Tensor, learning_rate: float
    ) -> None:
        """v ← μ v + (g + λ w); w ← w - η v, with the momentum v, the weight decay λ and the learning rate η.

        With Nesterov's momentum w ← w - η (g + λ w + μ v), by the new v.
        """
        grad_nD.add_(weight_nD, alpha=self.weight_decay)
        momentum_nD = slots["momentum"].mul_(self.momentum).add_(grad_nD)
        step_nD = grad_nD.add_(momentum_nD, alpha=self.momentum) if self.nesterov else momentum_nD
        weight_nD.sub_(step_nD, alpha=learning_rate)

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
            nesterov=self.nesterov,
            maximize=False,
            is_first_step=False,  # torch's own begins by copying the gradient: the same as from zero
            found_inf=dropped,
        )

    def for_backbone(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """`torch.optim.SGD`, on a GPU as one kernel for many parameters."""
        parameters = chain.from_iterable(group["params"] for group in groups)
        fused = all(p.device.type in self.fused_on for p in parameters)
        return torch.optim.SGD(
            groups, lr=self.learning_rate, momentum=self.momentum, nesterov=self.nesterov, fused=fused or None
        )
