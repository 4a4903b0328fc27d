"""CurricularFace: classes that look nearer than the target's weigh more, and the more so the further training is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field

from pipeline.head.margins.angular import extended_cosine
from pipeline.head.margins.margin import MARGINS, Observed, ScaledMargin, State, Target, Warp


@MARGINS.add("curricularface")
class CurricularFace(ScaledMargin):
    """Target logit s T = s cos(θ + m); of a class with cos θ_j > T, s cos θ_j (t + cos θ_j): Huang et al., CVPR 2020.

    t, state of the margin, is the running mean of cos θ to the target classes (section 3.2). No gradient reaches a
    sample through which of its classes are hard, or through t. In the authors' code (HuangYG123/CurricularFace,
    head/metrics.py) the target logit is cos θ - m sin m if θ + m > π, where this one, as ArcFace's here, extends the
    cosine; and what it compares cos θ_j with rises again there.
    """

    name: str = "curricularface"
    angle: float = Field(0.5, ge=0)
    """m, added to the angle, in radians."""
    rate: float = Field(0.01, gt=0, le=1)
    """How fast t follows the batches (the paper's α = 0.99 is its complement)."""

    def initial_state(self) -> dict[str, torch.Tensor]:
        """t."""
        return {"t": torch.tensor(0.0)}

    def next_state(self, state: State, observed: Observed) -> dict[str, torch.Tensor]:
        """t + rate (mean of cos θ - t)."""
        return {"t": torch.lerp(state["t"], observed.mean(observed.cosine_G), self.rate)}

    def warp_of_batch(self, state: State, target_cosine_G: torch.Tensor | None) -> Warp | None:
        """cos θ_j (t + cos θ_j) for the hard classes."""
        assert target_cosine_G is not None, "a margin with state is given the target cosines"
        return HardClasses(self.scale, extended_cosine(target_cosine_G, 1.0, self.angle), state["t"])

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s cos(θ + m) [G]."""
        return self.scale * extended_cosine(target.cosine_G, 1.0, self.angle)

    def margin_angle(self, theta: torch.Tensor) -> torch.Tensor:
        """θ + m."""
        return theta + self.angle


@dataclass(frozen=True)
class HardClasses:
    """The logits s c of classes with c > threshold become s c (t + c).

    Attributes:
        scale: s.
        threshold_G: of each sample.
        t: scalar.
    """

    scale: float
    threshold_G: torch.Tensor
    t: torch.Tensor

    def value(self, cosine: torch.Tensor) -> torch.Tensor:
        """c, or c (t + c)."""
        return torch.where(cosine > self.threshold_G, cosine * (self.t + cosine), cosine)

    def slope(self, cosine: torch.Tensor) -> torch.Tensor:
        """1, or t + 2c."""
        return torch.where(cosine > self.threshold_G, self.t + 2 * cosine, 1)
