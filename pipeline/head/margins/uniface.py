"""UniFace: one threshold that every positive similarity is to exceed, and no negative one."""

from __future__ import annotations

import math

import torch
from pydantic import Field

from pipeline.head.margins.binary import BinaryMargin
from pipeline.head.margins.margin import MARGINS, State, Target


@MARGINS.add("uniface")
class UniFace(BinaryMargin):
    """softplus(-s (cos θ - m) - b) + λ Σ_j softplus(s cos θ_j + b), -b/s the threshold: Zhou et al., ICCV 2023.

    The unified cross-entropy loss with margin (UCE-m, and with a balance λ, UCE-mb-λ); head.sample_rate makes it
    UCE-mb-r, whose r is the share of the negative classes. The bias begins as in the authors' code (CVI-SZU/UniFace,
    head.py), whose b has the other sign. That code also bounds each logit by ±s, which cuts the gradient of the worst
    positives off, and is left out here.
    """

    name: str = "uniface"
    margin: float = Field(0.4, ge=0)
    """m, taken from the target's cosine."""
    balance: float = Field(1.0, gt=0)
    """λ, the weight of each non-target class."""

    @property
    def weights(self) -> tuple[float, float]:
        """1 and λ."""
        return 1.0, self.balance

    def initial_bias(self, classes: float) -> float:
        """-ln(10 C), C being the classes that take part in a step."""
        return -math.log(10 * classes)

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s (cos θ - m) + b [G]."""
        return self.scale * (target.cosine_G - self.margin) + state["bias"]
