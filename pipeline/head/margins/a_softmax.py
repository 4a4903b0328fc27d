"""A-Softmax, the loss of SphereFace, with the schedule of its λ."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator

from pipeline.head.margins.angular import detach_margin, psi
from pipeline.head.margins.margin import MARGINS, Margin, ScaledMargin, State, Target


@MARGINS.add("a_softmax")
class ASoftmax(Margin):
    """‖x‖ (λ cos θ + ψ_m(θ)) / (1 + λ): Liu et al., CVPR 2017, eq. 7, with the λ of their Caffe layer."""

    name: str = "a_softmax"
    m: float = Field(4.0, ge=1)
    """Multiplies the angle; any real number."""
    detached: bool = False
    """Characteristic gradient detachment: the margin moves the value, the gradient is that of cos θ."""
    lambda_max: float = Field(1500.0, ge=0)
    """λ before the first step, which already has λ_max / (1 + γ)^power (the authors' solver: 1000)."""
    lambda_min: float = Field(5.0, ge=0)
    """λ's floor; 0 ends at the pure A-Softmax loss."""
    lambda_gamma: float = Field(0.1, ge=0)
    """λ = max(λ_min, λ_max (1 + γ·n)^-power) at the n-th step."""
    lambda_power: float = Field(1.0, ge=0)
    """See lambda_gamma."""

    @model_validator(mode="after")
    def _possible(self) -> ASoftmax:
        if self.lambda_min > self.lambda_max:
            raise ValueError(f"lambda_min: got {self.lambda_min}, wanted at most lambda_max {self.lambda_max}")
        return self

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """‖x‖ (λ cos θ + ψ_m(θ)) / (1 + λ) [G]; without a λ, λ = 0."""
        return target.embedding_norm_G * self._value(target.cosine_G, lambda_)

    def margin_angle(self, theta: torch.Tensor) -> torch.Tensor:
        """mθ."""
        return self.m * theta

    def lambda_at(self, step: int) -> float:
        """max(λ_min, λ_max (1 + γ·n)^-power) at the n-th step, which is ``step + 1``: `step` counts from 0.

        The authors' Caffe layer with base λ_max, which raises its counter before it computes λ; their released solver
        has base 1000, γ 0.12, power 1, λ_min 5 (wy1iu/sphereface, margin_inner_product_layer.cpp). λ is a function of
        the step, so it needs no checkpoint.
        """
        return max(self.lambda_min, self.lambda_max * (1 + self.lambda_gamma * (step + 1)) ** -self.lambda_power)

    @property
    def lambda_floor(self) -> float:
        """λ_min."""
        return self.lambda_min

    def _value(self, cosine_G: torch.Tensor, lambda_: float | None) -> torch.Tensor:
        lambda_ = lambda_ or 0.0
        value_G = (lambda_ * cosine_G + psi(cosine_G, self.m)) / (1 + lambda_)
        return detach_margin(value_G, cosine_G) if self.detached else value_G


@MARGINS.add("a_softmax_normalised")
class ASoftmaxNormalised(ScaledMargin, ASoftmax):
    """s (λ cos θ + ψ_m(θ)) / (1 + λ): A-Softmax with embeddings of length s, as in opensphere."""

    name: str = "a_softmax_normalised"

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s (λ cos θ + ψ_m(θ)) / (1 + λ) [G]; without a λ, λ = 0."""
        return self.scale * self._value(target.cosine_G, lambda_)
