"""AdaFace: an image's margin depends on where its embedding's norm, a measure of its quality, stands among all."""

from __future__ import annotations

import torch
from pydantic import Field

from pipeline.head.margins.angular import extended_cosine
from pipeline.head.margins.margin import MARGINS, Observed, ScaledMargin, State, Target

# Norms are held within these, as in the authors' code.
_NORMS = (1e-3, 100.0)
_EPSILON = 1e-3


@MARGINS.add("adaface")
class AdaFace(ScaledMargin):
    """s (cos(θ - mẑ) - m (1 + ẑ)), ẑ being where ‖x‖ stands among the norms: Kim et al., CVPR 2022, section 3.3.

    ẑ = h (‖x‖ - μ) / σ, held in [-1, 1], without a gradient. μ and σ are running means, state of the margin, of mean
    and standard deviation of the norms in a batch; here the batch is that of all ranks, where the authors' code has a
    GPU's. As in that code (mk-minchul/AdaFace, head.py) and not in the paper: 1e-3 is added to σ, norms are held in
    [1e-3, 100], θ - mẑ in [0, π], and μ and σ begin with 20 and 100. Its bound on cosines, 1 - 1e-3, is left out.
    """

    name: str = "adaface"
    margin: float = Field(0.4, ge=0)
    """m: CosFace's margin at ẑ = 0, ArcFace's at ẑ = -1; at ẑ = 1 it is -m on the angle and 2m off the cosine."""
    concentration: float = Field(0.333, ge=0)
    """h: ẑ is within [-h, h] for two thirds of the images."""
    rate: float = Field(0.01, gt=0, le=1)
    """How fast μ and σ follow the batches (t_alpha in the authors' code; the paper's 0.99 is its complement)."""

    def initial_state(self) -> dict[str, torch.Tensor]:
        """μ and σ."""
        return {"mean": torch.tensor(20.0), "deviation": torch.tensor(100.0)}

    def next_state(self, state: State, observed: Observed) -> dict[str, torch.Tensor]:
        """μ + rate (mean - μ), and σ likewise; a single norm has no deviation and leaves σ."""
        norm_G = observed.embedding_norm_G.clamp(*_NORMS)
        deviation = torch.lerp(state["deviation"], observed.deviation(norm_G), self.rate)
        several = observed.valid_G.sum() > 1
        return {
            "mean": torch.lerp(state["mean"], observed.mean(norm_G), self.rate),
            "deviation": torch.where(several, deviation, state["deviation"]),
        }

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s (cos(θ - mẑ) - m (1 + ẑ)) [G]."""
        norm_G = target.embedding_norm_G.detach().clamp(*_NORMS)
        quality_G = (norm_G - state["mean"]) / (state["deviation"] + _EPSILON)
        quality_G = (self.concentration * quality_G).clamp(-1, 1)
        value_G = extended_cosine(target.cosine_G, 1.0, -self.margin * quality_G, clamp=True)
        return self.scale * (value_G - self.margin * (1 + quality_G))
