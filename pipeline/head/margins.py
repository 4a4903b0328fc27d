"""Margins as pure functions: how the own class's logit differs from the others'.

Every loss here is softmax cross-entropy over one logit a class; θ is the angle between the embedding x and a class's
row. A margin says what the rows are multiplied with, what replaces the own class's logit, and (SphereFace-R v2 only)
what happens to the others'. ψ_m(θ) = (-1)^k cos(mθ) - 2k on [kπ/m, (k+1)π/m] is the monotone extension of cos(mθ).

| name                 | other logits | own logit                        | source                               |
| ---                  | ---          | ---                              | ---                                  |
| softmax              | x·w_j        | x·w_y                            | no bias, as every deep FR head       |
| modified_softmax     | ‖x‖ cos θ_j  | ‖x‖ cos θ                        | Liu et al., CVPR 2017, eq. 4         |
| a_softmax            | ‖x‖ cos θ_j  | ‖x‖ (λ cos θ + ψ_m(θ)) / (1 + λ) | Liu et al., CVPR 2017, eq. 7 and Caffe λ |
| a_softmax_normalised | s cos θ_j    | s (λ cos θ + ψ_m(θ)) / (1 + λ)   | the same with ‖x‖ = s (opensphere)   |
| sphereface_r_v1      | s cos θ_j    | s cos(min(mθ, π))                | Liu et al., "SphereFace Revived", 2022 |
| sphereface_r_v2      | s cos(θ_j/m) | s cos θ                          | the same                             |
| cosface              | s cos θ_j    | s (cos θ - b)                    | Wang et al., CVPR 2018, eq. 4        |
| arcface              | s cos θ_j    | s cos(θ + a)                     | Deng et al., CVPR 2019, eq. 3        |
| combined             | s cos θ_j    | s (cos(mθ + a) - b)              | Deng et al., CVPR 2019, eq. 4        |

Where mθ + a passes π, cos is extended as ψ is, so that every own logit falls as its angle grows. Gradients are the true
derivatives; with ``detached`` they are those of the logit without margin ("characteristic gradient detachment",
SphereFace Revived, section 3.5): the margin moves the value, the gradient is that of cos θ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

MARGINS = (
    "softmax",
    "modified_softmax",
    "a_softmax",
    "a_softmax_normalised",
    "sphereface_r_v1",
    "sphereface_r_v2",
    "cosface",
    "arcface",
    "combined",
)
_ANNEALED = {"a_softmax", "a_softmax_normalised"}
_KEEPS_NORM = {"softmax", "modified_softmax", "a_softmax"}


@dataclass(frozen=True)
class Margin:
    """A margin by name, with its numbers; those that the name does not use are ignored.

    Args:
        name: one of `MARGINS`.
        m: multiplies the angle; any real number of at least 1.
        scale: s, the length given to embeddings whose own is dropped.
        angle: a, added to the angle, in radians.
        cosine: b, taken from the cosine.
        detached: characteristic gradient detachment.

    Raises:
        ValueError: naming the number, the value got and the value wanted.
    """

    name: str
    m: float = 4.0
    scale: float = 64.0
    angle: float = 0.5
    cosine: float = 0.35
    detached: bool = False

    def __post_init__(self) -> None:
        if self.name not in MARGINS:
            raise ValueError(f"margin: got {self.name!r}, wanted one of {', '.join(MARGINS)}")
        for key, low in (("m", 1.0), ("scale", 1e-6), ("angle", 0.0), ("cosine", 0.0)):
            if getattr(self, key) < low:
                raise ValueError(f"{key}: got {getattr(self, key)}, wanted at least {low:g}")
        if self.name == "softmax" and self.detached:
            raise ValueError("detached: got true with softmax, which has no margin to detach")

    @property
    def normalises_rows(self) -> bool:
        """Whether a row enters as w/‖w‖."""
        return self.name != "softmax"

    @property
    def others(self) -> Warp | None:
        """What happens to the other classes' logits; None: nothing."""
        return Warp(self.m, self.scale, self.detached) if self.name == "sphereface_r_v2" else None

    def features(self, x_GD: torch.Tensor) -> torch.Tensor:
        """What the rows are multiplied with [G, D]: x itself, or x brought to length s."""
        return x_GD if self.name in _KEEPS_NORM else self.scale * F.normalize(x_GD, dim=1)

    def own_logit(self, x_GD: torch.Tensor, own_rows_GD: torch.Tensor, anneal: float) -> torch.Tensor:
        """Logit [G] of each sample's own class, from its embedding and its raw (not normalised) row.

        `anneal` is λ; only the A-Softmax losses read it.
        """
        if self.name == "softmax":
            return (x_GD * own_rows_GD).sum(1)
        length = x_GD.norm(dim=1) if self.name in _KEEPS_NORM else self.scale
        cosine_G = cosine(x_GD, own_rows_GD)
        value_G = self._with_margin(cosine_G, anneal)
        if self.detached:
            value_G = cosine_G + (value_G - cosine_G).detach()
        return length * value_G

    def _with_margin(self, cosine_G: torch.Tensor, anneal: float) -> torch.Tensor:
        if self.name in _ANNEALED:
            return (anneal * cosine_G + psi(cosine_G, self.m)) / (1 + anneal)
        if self.name == "sphereface_r_v1":
            return extended_cosine(cosine_G, self.m, clamp=True)
        if self.name == "cosface":
            return cosine_G - self.cosine
        if self.name == "arcface":
            return extended_cosine(cosine_G, 1.0, self.angle)
        if self.name == "combined":
            return extended_cosine(cosine_G, self.m, self.angle) - self.cosine
        return cosine_G


@dataclass(frozen=True)
class Warp:
    """SphereFace-R v2: the other classes' logits s cos θ become s cos(θ/m)."""

    m: float
    scale: float
    detached: bool

    def value(self, cosine: torch.Tensor) -> torch.Tensor:
        """cos(θ/m)."""
        return torch.cos(torch.arccos(cosine) / self.m)

    def slope(self, cosine: torch.Tensor) -> torch.Tensor:
        """d cos(θ/m) / d cos θ = sin(θ/m) / (m sin θ), 1/m² at θ = 0; 1 where the gradient is detached."""
        if self.detached:
            return torch.ones_like(cosine)
        theta = torch.arccos(cosine)
        return _sine_ratio(theta / self.m, theta, limit=1 / self.m) / self.m


def cosine(x_GD: torch.Tensor, rows_GD: torch.Tensor) -> torch.Tensor:
    """cos θ [G] between paired rows, within [-1, 1]."""
    return (F.normalize(x_GD, dim=1) * F.normalize(rows_GD, dim=1)).sum(1).clamp(-1, 1)


def psi(cosine_G: torch.Tensor, m: float) -> torch.Tensor:
    """ψ_m(θ) as a function of cos θ (Liu et al., CVPR 2017, below eq. 6), for any real m ≥ 1.

    Monotone decreasing and once differentiable in θ on [0, π]; ψ = cos θ for m = 1.
    """
    return extended_cosine(cosine_G, m)


def extended_cosine(cosine_G: torch.Tensor, m: float, angle: float = 0.0, clamp: bool = False) -> torch.Tensor:
    """cos(φ) of φ = mθ + angle, beyond π extended to (-1)^k cos φ - 2k with k = ⌊φ/π⌋, or held at -1 (`clamp`)."""
    return _ExtendedCosine.apply(cosine_G, m, angle, clamp)


class _ExtendedCosine(torch.autograd.Function):
    """With the derivative in cos θ, m (-1)^k sin φ / sin θ, written out.

    Automatic differentiation through arccos gives 0·∞ at θ = 0 and π, where the limit (angle = 0) is m².
    """

    @staticmethod
    def forward(ctx: Any, cosine_G: torch.Tensor, m: float, angle: float, clamp: bool) -> torch.Tensor:
        theta = torch.arccos(cosine_G)
        phi = m * theta + angle
        if clamp:
            phi = phi.clamp(max=math.pi)
        # φ = its largest value belongs to the last interval: floor would open one more where it is a multiple of π.
        last = math.ceil((m * math.pi + angle) / math.pi - 1e-12) - 1
        k = (phi / math.pi).floor().clamp(max=0 if clamp else last)
        ctx.save_for_backward(theta, phi, k)
        ctx.m = m
        return _sign(k) * torch.cos(phi) - 2 * k

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        theta, phi, k = ctx.saved_tensors
        return grad * ctx.m * _sign(k) * _sine_ratio(phi, theta, limit=ctx.m * _sign(k)), None, None, None


def _sine_ratio(phi: torch.Tensor, theta: torch.Tensor, limit: float | torch.Tensor) -> torch.Tensor:
    """sin φ / sin θ; where both vanish, `limit`. Where only sin θ does, the ratio is bounded by a floor of 1e-4."""
    above, below = torch.sin(phi), torch.sin(theta)
    both = (below < 1e-4) & (above.abs() < 1e-2)
    return torch.where(
        both, torch.as_tensor(limit, dtype=theta.dtype, device=theta.device), above / below.clamp(min=1e-4)
    )


def _sign(k: torch.Tensor) -> torch.Tensor:
    """(-1)^k for integer-valued k."""
    return 1 - 2 * (k % 2)


def anneal(step: int, maximum: float = 1500.0, minimum: float = 5.0, gamma: float = 0.1, power: float = 1.0) -> float:
    """λ at `step` (from 0): max(λ_min, λ_max (1 + γ·step)^-power).

    The authors' Caffe layer with base = `maximum`; their released solver has base 1000, γ 0.12, power 1, λ_min 5
    (wy1iu/sphereface, margin_inner_product_layer.cpp). λ is a function of the step, so it needs no checkpoint.
    """
    return max(minimum, maximum * (1 + gamma * step) ** -power)
