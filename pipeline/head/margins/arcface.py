"""CosFace, ArcFace and both with a multiplied angle: margins that are added, on embeddings of one length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field

from pipeline.head.margins.angular import detach_margin, extended_cosine
from pipeline.head.margins.margin import MARGINS, ScaledMargin, State, Target


class Filtering(ScaledMargin):
    """A margin that may leave non-target classes alone which are too near to be others: label noise."""

    filter: float | None = Field(None, gt=0, lt=1)
    """A non-target class with a larger cosine is taken for the same person under another label: its logit becomes 0 and
    has no gradient (arcface_torch's interclass_filtering_threshold, 0.4 in its configs); null: none is."""

    @property
    def warp(self) -> Filtered | None:
        """0 for the classes that the filter leaves alone."""
        return None if self.filter is None else Filtered(self.scale, self.filter)


@dataclass(frozen=True)
class Filtered:
    """The logits s c of classes with c > threshold become 0."""

    scale: float
    threshold: float

    def value(self, cosine: torch.Tensor) -> torch.Tensor:
        """c, or 0."""
        return cosine.masked_fill(cosine > self.threshold, 0)

    def slope(self, cosine: torch.Tensor) -> torch.Tensor:
        """1, or 0."""
        return (cosine <= self.threshold).to(cosine.dtype)


@MARGINS.add("cosface")
class CosFace(Filtering):
    """s (cos θ - b): Wang et al., CVPR 2018, eq. 4."""

    name: str = "cosface"
    cosine: float = Field(0.35, ge=0)
    """b, taken from the cosine."""

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s (cos θ - b) [G]."""
        return self.scale * (target.cosine_G - self.cosine)


@MARGINS.add("arcface")
class ArcFace(Filtering):
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
class Combined(Filtering):
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
