"""CosFace, ArcFace and both with a multiplied angle: margins that are added, on embeddings of one length."""

from __future__ import annotations

import torch
from pydantic import Field

from pipeline.head.margins.angular import detach_margin, extended_cosine
from pipeline.head.margins.margin import MARGINS, ScaledMargin, State, Target


@MARGINS.add("cosface")
class CosFace(ScaledMargin):
    """s (cos θ - b): Wang et al., CVPR 2018, eq. 4."""

    name: str = "cosface"
    cosine: float = Field(0.35, ge=0)
    """b, taken from the cosine."""

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s (cos θ - b) [G]."""
        return self.scale * (target.cosine_G - self.cosine)


@MARGINS.add("arcface")
class ArcFace(ScaledMargin):
    """s cos(θ + a): Deng et al., CVPR 2019, eq. 3."""

    name: str = "arcface"
    angle: float = Field(0.5, ge=0)
    """a, added to the angle, in radians."""
    detached: bool = False
    """Characteristic gradient detachment: the margin moves the value, the gradient is that of cos θ."""

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s cos(θ + a) [G]."""
        value_G = extended_cosine(target.cosine_G, 1.0, self.angle)
        return self.scale * (detach_margin(value_G, target.cosine_G) if self.detached else value_G)

    def margin_angle(self, theta: torch.Tensor) -> torch.Tensor:
        """θ + a."""
        return theta + self.angle


@MARGINS.add("combined")
class Combined(ScaledMargin):
    """s (cos(mθ + a) - b): Deng et al., CVPR 2019, eq. 4."""

    name: str = "combined"
    m: float = Field(4.0, ge=1)
    """Multiplies the angle; any real number."""
    angle: float = Field(0.5, ge=0)
    """a, added to the angle, in radians."""
    cosine: float = Field(0.35, ge=0)
    """b, taken from the cosine."""
    detached: bool = False
    """Characteristic gradient detachment: the margin moves the value, the gradient is that of cos θ."""

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s (cos(mθ + a) - b) [G]."""
        value_G = extended_cosine(target.cosine_G, self.m, self.angle) - self.cosine
        return self.scale * (detach_margin(value_G, target.cosine_G) if self.detached else value_G)

    def margin_angle(self, theta: torch.Tensor) -> torch.Tensor:
        """mθ + a."""
        return self.m * theta + self.angle
