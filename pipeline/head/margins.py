"""Margins as pure functions: how the own class's logit differs from the others'.

Every loss here is softmax cross-entropy over logits ``f(x)·w_j``; a margin says what f(x) is, whether the rows w_j
are normalised, and what replaces the own class's logit. θ is the angle between the embedding x and the own row.

| name             | other logits | own logit                      | source                                   |
| ---              | ---          | ---                            | ---                                      |
| softmax          | x·w_j        | x·w_y                          | no bias, as every deep FR head           |
| modified_softmax | ‖x‖ cos θ_j  | ‖x‖ cos θ                      | Liu et al., CVPR 2017, eq. 4             |
| a_softmax        | ‖x‖ cos θ_j  | ‖x‖ (λ cos θ + ψ(θ)) / (1 + λ) | Liu et al., CVPR 2017, eq. 7 and Caffe λ |

ψ(θ) = (-1)^k cos(mθ) - 2k for θ in [kπ/m, (k+1)π/m], the monotone extension of cos(mθ) to [0, π]. Gradients are
the true derivatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

MARGINS = ("softmax", "modified_softmax", "a_softmax")


@dataclass(frozen=True)
class Margin:
    """A margin by name, with its number.

    Args:
        name: one of `MARGINS`.
        m: A-Softmax's angular multiplier, a real number of at least 1 (the paper: 1, 2, 3, 4).

    Raises:
        ValueError: for an unknown name or an m below 1.
    """

    name: str
    m: float = 4.0

    def __post_init__(self) -> None:
        if self.name not in MARGINS:
            raise ValueError(f"margin: got {self.name!r}, wanted one of {', '.join(MARGINS)}")
        if self.m < 1:
            raise ValueError(f"m: got {self.m}, wanted at least 1")

    @property
    def normalises_rows(self) -> bool:
        """Whether a row enters as w/‖w‖."""
        return self.name != "softmax"

    def own_logit(self, x_GD: torch.Tensor, own_rows_GD: torch.Tensor, anneal: float) -> torch.Tensor:
        """Logit [G] of each sample's own class, from its embedding and its raw (not normalised) row.

        `anneal` is λ; only A-Softmax reads it.
        """
        if self.name == "softmax":
            return (x_GD * own_rows_GD).sum(1)
        norm_G = x_GD.norm(dim=1)
        cosine_G = cosine(x_GD, own_rows_GD)
        if self.name == "modified_softmax":
            return norm_G * cosine_G
        return norm_G * (anneal * cosine_G + psi(cosine_G, self.m)) / (1 + anneal)


def cosine(x_GD: torch.Tensor, rows_GD: torch.Tensor) -> torch.Tensor:
    """cos θ [G] between paired rows, within [-1, 1]."""
    return (F.normalize(x_GD, dim=1) * F.normalize(rows_GD, dim=1)).sum(1).clamp(-1, 1)


def psi(cosine_G: torch.Tensor, m: float) -> torch.Tensor:
    """ψ(θ) as a function of cos θ (Liu et al., CVPR 2017, below eq. 6), for any real m ≥ 1.

    Monotone decreasing and once differentiable in θ on [0, π]; ψ = cos θ for m = 1.
    """
    return _Psi.apply(cosine_G, m)


class _Psi(torch.autograd.Function):
    """ψ with dψ/dcosθ = m (-1)^k sin(mθ)/sin θ written out.

    Automatic differentiation through arccos gives 0·∞ at θ = 0 and π, where the limit is m².
    """

    @staticmethod
    def forward(ctx: Any, cosine_G: torch.Tensor, m: float) -> torch.Tensor:
        theta = torch.arccos(cosine_G)
        # θ = π belongs to the last interval: floor(mπ/π) would open one more for integer m.
        k = (m * theta / math.pi).floor().clamp(max=math.ceil(m) - 1)
        ctx.save_for_backward(theta, k)
        ctx.m = m
        return _sign(k) * torch.cos(m * theta) - 2 * k

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        theta, k = ctx.saved_tensors
        m = ctx.m
        sine = torch.sin(theta)
        # Near the ends both sines vanish; their ratio is taken as its limit there.
        near = sine < 1e-4
        ratio = _sign(k) * torch.sin(m * theta) / torch.where(near, torch.ones_like(sine), sine)
        return grad * m * torch.where(near, torch.full_like(ratio, m), ratio), None


def _sign(k: torch.Tensor) -> torch.Tensor:
    """(-1)^k for integer-valued k."""
    return 1 - 2 * (k % 2)


def anneal(step: int, maximum: float = 1500.0, minimum: float = 5.0, gamma: float = 0.1, power: float = 1.0) -> float:
    """λ at `step` (from 0): max(λ_min, λ_max (1 + γ·step)^-power).

    The authors' Caffe layer with base = `maximum`; their released solver has base 1000, γ 0.12, power 1, λ_min 5
    (wy1iu/sphereface, margin_inner_product_layer.cpp). λ is a function of the step, so it needs no checkpoint.
    """
    return max(minimum, maximum * (1 + gamma * step) ** -power)
