"""ElasticFace: ArcFace and CosFace with a margin that is drawn anew for every sample of every step."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from pipeline.head.margins.angular import extended_cosine
from pipeline.head.margins.margin import MARGINS, ScaledMargin, State, Target


class Elastic(ScaledMargin):
    """What both have: E(m, σ), a normal number for each sample: Boutros et al., CVPR Workshops 2022, section 3.2.

    The authors' code (fdbtrs/ElasticFace, utils/losses.py) draws from each GPU's generator; here a number is a hash of
    (seed, step, sample), the same on any number of ranks and after any resume. Their "+", which gives the larger
    margins to the smaller cosines of a GPU's batch, is not here.
    """

    draws: ClassVar = True

    deviation: float = Field(0.05, ge=0)
    """σ of the margin."""


@MARGINS.add("elasticface_arc")
class ElasticFaceArc(Elastic):
    """s cos(θ + E(m, σ)): ElasticFace-Arc."""

    name: str = "elasticface_arc"
    angle: float = Field(0.5, ge=0)
    """m, the mean of what is added to the angle, in radians."""

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s cos(θ + E(m, σ)) [G]."""
        return self.scale * extended_cosine(target.cosine_G, 1.0, self.angle + self.deviation * target.normal_G)

    def margin_angle(self, theta: torch.Tensor) -> torch.Tensor:
        """θ + m."""
        return theta + self.angle


@MARGINS.add("elasticface_cos")
class ElasticFaceCos(Elastic):
    """s (cos θ - E(m, σ)): ElasticFace-Cos."""

    name: str = "elasticface_cos"
    cosine: float = Field(0.35, ge=0)
    """m, the mean of what is taken from the cosine."""

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s (cos θ - E(m, σ)) [G]."""
        return self.scale * (target.cosine_G - self.cosine - self.deviation * target.normal_G)
