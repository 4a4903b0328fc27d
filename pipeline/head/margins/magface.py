"""MagFace: the margin grows with an embedding's norm, and a penalty on short ones makes good images long."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator

from pipeline.head.margins.angular import extended_cosine
from pipeline.head.margins.margin import MARGINS, ScaledMargin, State, Target


@MARGINS.add("magface")
class MagFace(ScaledMargin):
    """s cos(θ + m(a)), with λ_g g(a) added to the loss: Meng et al., CVPR 2021, eq. 2.

    a is ‖x‖ held within [norm_low, norm_high], and both terms have its gradient. m is the line from margin_low to
    margin_high over that interval; g(a) = 1/a + a/norm_high², which falls towards norm_high. In the authors' code
    (IrvingMeng/MagFace, models/magface.py) the target logit is that without margin if θ > π/2, which is not in the
    paper and not here.
    """

    name: str = "magface"
    norm_low: float = Field(10.0, gt=0)
    """l_a: shorter embeddings have margin_low."""
    norm_high: float = Field(110.0, gt=0)
    """u_a: longer embeddings have margin_high."""
    margin_low: float = Field(0.45, ge=0)
    """l_m, in radians."""
    margin_high: float = Field(0.8, ge=0)
    """u_m, in radians."""
    penalty_weight: float = Field(35.0, ge=0)
    """λ_g. Every image has a best norm of its own from s (u_m - l_m) / (u_a - l_a) / (1/l_a² - 1/u_a²) on (22.6)."""

    @model_validator(mode="after")
    def _rising(self) -> MagFace:
        for what in ("norm", "margin"):
            low, high = getattr(self, f"{what}_low"), getattr(self, f"{what}_high")
            if low > high or (what == "norm" and low == high):
                raise ValueError(f"{what}_low: got {low}, wanted less than {what}_high {high}")
        return self

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s cos(θ + m(a)) [G]."""
        slope = (self.margin_high - self.margin_low) / (self.norm_high - self.norm_low)
        angle_G = self.margin_low + slope * (self._held(target) - self.norm_low)
        return self.scale * extended_cosine(target.cosine_G, 1.0, angle_G)

    def penalty(self, target: Target) -> torch.Tensor:
        """λ_g g(a) [G]."""
        norm_G = self._held(target)
        return self.penalty_weight * (1 / norm_G + norm_G / self.norm_high**2)

    def margin_angle(self, theta: torch.Tensor) -> torch.Tensor:
        """θ + margin_low, which the margin is at least."""
        return theta + self.margin_low

    def _held(self, target: Target) -> torch.Tensor:
        return target.embedding_norm_G.clamp(self.norm_low, self.norm_high)
