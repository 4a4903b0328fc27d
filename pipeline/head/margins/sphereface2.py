"""SphereFace2: one binary classification a class, positives and negatives balanced, similarities adjusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field

from pipeline.head.margins.angular import detach_margin
from pipeline.head.margins.binary import BinaryMargin
from pipeline.head.margins.margin import MARGINS, State, Target


@MARGINS.add("sphereface2")
class SphereFace2(BinaryMargin):
    """λ/r softplus(-r (g(cos θ) - m) - b) + (1-λ)/r Σ_j softplus(r (g(cos θ_j) + m) + b): Wen et al., ICLR 2022.

    That is SphereFace2-C, the paper's final loss, with g(c) = 2 ((c+1)/2)^t - 1. The authors' code (ydwen/opensphere,
    module/head/sphereface2.py) multiplies it by 50, and gives it the gradient of cos θ in place of that of g; so do the
    defaults here. Its rows are brought to length 1 before each step (head.unit_rows).
    """

    name: str = "sphereface2"
    scale: float = Field(40.0, gt=0)
    """r."""
    margin: float = Field(0.4, ge=0)
    """m, taken from the target's similarity and added to the others'."""
    exponent: float = Field(3.0, ge=1)
    """t of g: the larger, the more similarities are told apart where they are large."""
    balance: float = Field(0.7, gt=0, lt=1)
    """λ, the weight of the target class; 1 - λ is that of each other."""
    loss_weight: float = Field(50.0, gt=0)
    """Multiplies the loss; 1 in the paper's equation, where gradients are small by the factor 1/r."""
    detached: bool = True
    """Characteristic gradient detachment: margin and g move the values, the gradients are those of cos θ."""

    @property
    def weights(self) -> tuple[float, float]:
        """λ/r and (1 - λ)/r, times the loss's weight."""
        per_class = self.loss_weight / self.scale
        return per_class * self.balance, per_class * (1 - self.balance)

    @property
    def warp(self) -> Similarity:
        """g(cos θ_j) + m for the non-target classes."""
        return Similarity(self.scale, self.exponent, self.margin, self.detached)

    def initial_bias(self, classes: float) -> float:
        """The b for which, all cosines being 0, the loss has no gradient in it: positives and negatives weigh alike.

        e^b is the positive root of e^a₊ u² + (1 - z) u - z e^-a₋ with z = λ / ((1 - λ)(C - 1)), a± = r (g(0) ∓ m).
        """
        z = self.balance / (1 - self.balance) / max(classes - 1, 1)
        at_zero = self.scale * (2 * 0.5**self.exponent - 1)
        positive, negative = at_zero - self.scale * self.margin, at_zero + self.scale * self.margin
        root = math.sqrt((1 - z) ** 2 + 4 * z * math.exp(positive - negative))
        # of the two forms of the root the one that subtracts nothing of its own size
        if z < 1:
            return math.log(2 * z) - negative - math.log(1 - z + root)
        return math.log(z - 1 + root) - math.log(2) - positive

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """r (g(cos θ) - m) + b [G]."""
        value_G = adjusted(target.cosine_G, self.exponent)
        value_G = detach_margin(value_G, target.cosine_G) if self.detached else value_G
        return self.scale * (value_G - self.margin) + state["bias"]


@dataclass(frozen=True)
class Similarity:
    """The logits s cos θ of the non-target classes become s (g(cos θ) + m)."""

    scale: float
    exponent: float
    margin: float
    detached: bool

    def value(self, cosine: torch.Tensor) -> torch.Tensor:
        """g(cos θ) + m."""
        return adjusted(cosine, self.exponent).add_(self.margin)

    def slope(self, cosine: torch.Tensor) -> torch.Tensor:
        """g' = t ((c+1)/2)^(t-1); 1 if the gradient is detached."""
        if self.detached:
            return torch.ones_like(cosine)
        return self.exponent * ((cosine + 1) / 2) ** (self.exponent - 1)


def adjusted(cosine: torch.Tensor, exponent: float) -> torch.Tensor:
    """g(c) = 2 ((c+1)/2)^t - 1."""
    return 2 * ((cosine + 1) / 2) ** exponent - 1
