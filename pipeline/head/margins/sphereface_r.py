"""SphereFace-R: the margin on the target angle (v1), or on the angles of the non-target classes (v2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from pipeline.head.margins.angular import detach_margin, extended_cosine, sine_ratio
from pipeline.head.margins.margin import MARGINS, ScaledMargin, State, Target


@MARGINS.add("sphereface_r_v1")
class SphereFaceR1(ScaledMargin):
    """s cos(min(mθ, π)): Liu et al., "SphereFace Revived", 2022, with its three ways to treat ‖x‖.

    They are SphereFaceR_H, _S and _N of the authors' code (ydwen/opensphere, model/head/spherefacer.py), which
    multiplies the loss by 50/s; here that is the learning rate's.
    """

    name: str = "sphereface_r_v1"
    m: float = Field(4.0, ge=1)
    """Multiplies the angle; any real number."""
    detached: bool = False
    """Characteristic gradient detachment: the margin moves the value, the gradient is that of cos θ."""
    feature_norm: Literal["hard", "soft", "none"] = "hard"
    """hard: embeddings are brought to length s. soft: they keep theirs, which the loss draws towards s. none: they keep
    theirs, and s is not used."""
    softness: float = Field(0.006, ge=0)
    """What soft adds to the loss: this times the distance of ‖x‖ from s. (The authors' 0.01 on a loss that is times
    50/30, for s = 30.)"""

    def features(self, x_GD: torch.Tensor) -> torch.Tensor:
        """x, brought to length s if that is hard [G, D]."""
        return super().features(x_GD) if self.feature_norm == "hard" else x_GD

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s cos(min(mθ, π)), or ‖x‖ cos(min(mθ, π)) [G]."""
        value_G = extended_cosine(target.cosine_G, self.m, clamp=True)
        value_G = detach_margin(value_G, target.cosine_G) if self.detached else value_G
        return value_G * (self.scale if self.feature_norm == "hard" else target.embedding_norm_G)

    def penalty(self, target: Target) -> torch.Tensor | None:
        """softness · |‖x‖ - s| [G], if soft."""
        if self.feature_norm != "soft":
            return None
        return self.softness * (target.embedding_norm_G - self.scale).abs()

    def margin_angle(self, theta: torch.Tensor) -> torch.Tensor:
        """mθ; beyond π the logit no longer falls."""
        return self.m * theta


@MARGINS.add("sphereface_r_v2")
class SphereFaceR2(ScaledMargin):
    """Non-target logits s cos(θ_j/m), target logit s cos θ: Liu et al., "SphereFace Revived", 2022."""

    name: str = "sphereface_r_v2"
    m: float = Field(4.0, ge=1)
    """Divides the angles of the non-target classes; any real number."""
    detached: bool = False
    """Characteristic gradient detachment: the margin moves the values, their gradients are those of cos θ_j."""

    @property
    def warp(self) -> DividedAngle:
        """cos(θ_j/m) for the non-target classes."""
        return DividedAngle(self.m, self.scale, self.detached)

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s cos θ [G]."""
        return self.scale * target.cosine_G


@dataclass(frozen=True)
class DividedAngle:
    """The logits s cos θ of the non-target classes become s cos(θ/m)."""

    m: float
    scale: float
    detached: bool

    def value(self, cosine: torch.Tensor) -> torch.Tensor:
        """cos(θ/m)."""
        return torch.cos(torch.arccos(cosine) / self.m)

    def slope(self, cosine: torch.Tensor) -> torch.Tensor:
        """d cos(θ/m) / d cos θ = sin(θ/m) / (m sin θ), 1/m² at θ = 0; 1 if the gradient is detached."""
        if self.detached:
            return torch.ones_like(cosine)
        theta = torch.arccos(cosine)
        return sine_ratio(theta / self.m, theta, limit=1 / self.m) / self.m
