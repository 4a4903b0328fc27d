"""A-Softmax, the loss of SphereFace, with the schedule of its λ."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator

from pipeline.head.margins.angular import detach_margin, psi
from pipeline.head.margins.margin import MARGINS, Margin, ScaledMargin, State, Target


class Annealed(Margin):
    """What A-Softmax with and without normalised embeddings share: ψ_m, and a λ that fades cos θ out of the logit."""

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
    def _possible(self) -> Annealed:
        if self.lambda_min > self.lambda_max:
            raise ValueError(f"lambda_min: got {self.lambda_min}, wanted at most lambda_max {self.lambda_max}")
        return self

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

    def value(self, cosine_G: torch.Tensor, lambda_: float | None) -> torch.Tensor:
        """(λ cos θ + ψ_m(θ)) / (1 + λ) [G]."""
        lambda_ = lambda_ or 0.0
        value_G = (lambda_ * cosine_G + psi(cosine_G, self.m)) / (1 + lambda_)
        return detach_margin(value_G, cosine_G) if self.detached else value_G


@MARGINS.add("a_softmax")
class ASoftmax(Annealed):
    """‖x‖ (λ cos θ + ψ_m(θ)) / (1 + λ): Liu et al., CVPR 2017, eq. 7, with the λ of their Caffe layer."""

    name: str = "a_softmax"
    gradient: Literal["exact", "authors"] = "exact"
    """exact: of the loss. authors: of their Caffe layer, for rows of length 1 (head.unit_rows): see `authors_logit`."""

    @model_validator(mode="after")
    def _one_gradient(self) -> ASoftmax:
        if self.detached and self.gradient == "authors":
            raise ValueError("detached: got true with gradient authors, wanted one of the two gradients")
        return self

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """‖x‖ (λ cos θ + ψ_m(θ)) / (1 + λ) [G]; without a λ, λ = 0."""
        if self.gradient == "authors":
            return authors_logit(target, self.m, lambda_ or 0.0)
        return target.embedding_norm_G * self.value(target.cosine_G, lambda_)

    @property
    def normalises_rows(self) -> bool:
        """Not for the authors' gradient: the rows' length is 1, and no projection follows."""
        return self.gradient == "exact"

    @property
    def needs_unit_rows(self) -> bool:
        """For the authors' gradient."""
        return self.gradient == "authors"


@MARGINS.add("a_softmax_normalised")
class ASoftmaxNormalised(ScaledMargin, Annealed):
    """s (λ cos θ + ψ_m(θ)) / (1 + λ): A-Softmax with embeddings of length s, as in opensphere."""

    name: str = "a_softmax_normalised"

    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """s (λ cos θ + ψ_m(θ)) / (1 + λ) [G]; without a λ, λ = 0."""
        return self.scale * self.value(target.cosine_G, lambda_)


def authors_logit(target: Target, m: float, lambda_: float) -> torch.Tensor:
    """A-Softmax's target logit [G] with the gradient that the authors' Caffe layer gives it, for rows w of length 1.

    As a function of x, ‖x‖ψ(cos θ) has the gradient a·w + b·x with a = ψ'(cos θ), b = (ψ - cos θ ψ') / ‖x‖. The layer
    divides it by sqrt(a² + b²), which keeps a steep ψ from making steps too long, and adds that of λ x·w as it is. On
    the row it leaves out margin and projection: the gradient is x. (wy1iu/sphereface, margin_inner_product_layer.cpp,
    Backward_cpu.)
    """
    x_GD, rows_GD = target.x_GD, target.rows_GD
    with torch.enable_grad():
        cosine_G = target.cosine_G.detach().requires_grad_()
        value_G = psi(cosine_G, m)
        (slope_G,) = torch.autograd.grad(value_G.sum(), cosine_G)
    with torch.no_grad():
        norm_G = target.embedding_norm_G.clamp(min=1e-12)
        b_G = (value_G - cosine_G * slope_G) / norm_G
        length_G = torch.hypot(slope_G, b_G)
        of_x_GD = (lambda_ + slope_G / length_G)[:, None] * rows_GD + (b_G / length_G)[:, None] * x_GD
        value_G = target.embedding_norm_G * (lambda_ * cosine_G + value_G) / (1 + lambda_)
    # What has these two gradients; its value does not matter.
    linear_G = (x_GD * of_x_GD).sum(1) / (1 + lambda_) + (rows_GD * x_GD.detach()).sum(1)
    return linear_G + (value_G - linear_G).detach()
