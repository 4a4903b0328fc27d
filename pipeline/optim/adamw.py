"""AdamW, as `torch.optim.AdamW` computes it: the optimizer of vision transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from pydantic import Field

from pipeline.optim.optimizer import OPTIMIZERS, Optimizer, Slot


@OPTIMIZERS.add("adamw")
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019, algorithm 2). For backbone and head alike.

    The rate of a step is also that of its weight decay: w ← (1 - η λ) w, as in torch.
    """

    slots: ClassVar = (Slot("mean", "exp_avg"), Slot("square", "exp_avg_sq"), Slot("count", "step", per_number=False))
    fused_on: ClassVar = frozenset({"cuda"})
    """Types of devices on which torch's fused kernel is used. On a CPU it would round otherwise, for nothing."""

    name: str = "adamw"
    """Which optimizer this is."""
    weight_decay: float = Field(0.1, ge=0)
    """λ, of the head's rows and of the backbone's weights; arcface_torch trains vision transformers with 0.1."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """How much of the gradient's running mean stays in a step."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """How much of the running mean of its square stays in a step."""
    eps: float = Field(1e-8, gt=0)
    """ε, added to the square root, so that nothing is divided by 0."""

    def update_rows(
        self, weight_nD: torch.Tensor, slots: Mapping[str, torch.Tensor], grad_nD: torch.Tensor, learning_rate: float
    ) -> None:
        """The algorithm on rows, each with the count of its own updates t.

        m ← β₁ m + (1 - β₁) g; v ← β₂ v + (1 - β₂) g²; w ← (1 - η λ) w - η (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε)
        """
        self._update(weight_nD, slots, grad_nD, learning_rate, 1.0)

    def update_rows_unless(
        self,
        dropped: torch.Tensor,
        weight_nD: torch.Tensor,
        slots: Mapping[str, torch.Tensor],
        grad_nD: torch.Tensor,
        learning_rate: float,
    ) -> None:
        """See `Optimizer`. On a GPU `dropped` is a factor of all that changes: the host does not wait to know."""
        if weight_nD.device.type not in self.fused_on:
            super().update_rows_unless(dropped, weight_nD, slots, grad_nD, learning_rate)
            return
        grad_nD.masked_fill_(dropped > 0, 0)  # it may not be finite, and 0 · ∞ is no 0
        self._update(weight_nD, slots, grad_nD, learning_rate, 1 - dropped)

    def _update(
        self,
        weight_nD: torch.Tensor,
        slots: Mapping[str, torch.Tensor],
        grad_nD: torch.Tensor,
        learning_rate: float,
        keep: torch.Tensor | float,
    ) -> None:
        """All that changes is times `keep`, 1 or 0. Needs memory for one more tensor [n, D]."""
        count_n1 = slots["count"].add_(keep)[:, None].clamp(min=1)
        mean_nD = slots["mean"].lerp_(grad_nD, (1 - self.beta1) * keep)
        square_nD = slots["square"].mul_(1 - (1 - self.beta2) * keep).addcmul_(grad_nD, grad_nD, value=1 - self.beta2)
        size_nD = (square_nD / _not_yet_forgotten(self.beta2, count_n1)).sqrt_().add_(self.eps)
        step_n1 = learning_rate * keep / _not_yet_forgotten(self.beta1, count_n1)
        weight_nD.mul_(1 - learning_rate * self.weight_decay * keep)
        weight_nD.sub_(torch.div(mean_nD, size_nD, out=size_nD).mul_(step_n1))

    def for_backbone(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """`torch.optim.AdamW`, on a GPU as one kernel for many parameters."""
        parameters = chain.from_iterable(group["params"] for group in groups)
        fused = all(p.device.type in self.fused_on for p in parameters)
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=betas, eps=self.eps, fused=fused or None)


def _not_yet_forgotten(beta: float, count_n1: torch.Tensor) -> torch.Tensor:
    """1 - βᵗ [n, 1]; 1 - 0.999 in float32 would be off by 1e-5."""
    return -torch.expm1(count_n1 * math.log(beta)) if beta > 0 else torch.ones_like(count_n1)
