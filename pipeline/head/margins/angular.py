"""Functions of the cosine of an angle that margins are made of, with derivatives that are right at the poles too."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F


def cosine(x_GD: torch.Tensor, rows_GD: torch.Tensor) -> torch.Tensor:
    """cos θ [G] between paired rows, within [-1, 1]."""
    return (F.normalize(x_GD, dim=1) * F.normalize(rows_GD, dim=1)).sum(1).clamp(-1, 1)


def detach_margin(value_G: torch.Tensor, cosine_G: torch.Tensor) -> torch.Tensor:
    """`value_G` with the gradient of `cosine_G`: characteristic gradient detachment (SphereFace Revived, 3.5)."""
    return cosine_G + (value_G - cosine_G).detach()


def psi(cosine_G: torch.Tensor, m: float) -> torch.Tensor:
    """ψ_m(θ) as a function of cos θ (Liu et al., CVPR 2017, below eq. 6), for any real m ≥ 1.

    Monotone decreasing and once differentiable in θ on [0, π]; ψ = cos θ for m = 1.
    """
    return extended_cosine(cosine_G, m)


def extended_cosine(
    cosine_G: torch.Tensor, m: float, angle: float | torch.Tensor = 0.0, clamp: bool = False
) -> torch.Tensor:
    """cos(φ) of φ = mθ + angle, beyond π extended to (-1)^k cos φ - 2k with k = ⌊φ/π⌋; or φ held in [0, π] (`clamp`).

    The angle may be one for each sample [G], with a gradient.
    """
    return _ExtendedCosine.apply(cosine_G, m, angle, clamp)


class _ExtendedCosine(torch.autograd.Function):
    """With the derivative in cos θ, m (-1)^k sin φ / sin θ, written out, and that in the angle, -(-1)^k sin φ.

    Automatic differentiation through arccos gives 0·∞ at θ = 0 and π, where the limit (angle = 0) is m².
    """

    @staticmethod
    def forward(ctx: Any, cosine_G: torch.Tensor, m: float, angle: float | torch.Tensor, clamp: bool) -> torch.Tensor:
        theta = torch.arccos(cosine_G)
        phi = m * theta + angle
        held = phi.clamp(0, math.pi) if clamp else phi
        # φ = its largest value belongs to the last interval: floor would open one more if it is a multiple of π.
        largest = m + angle / math.pi - 1e-12
        last = largest.ceil() - 1 if isinstance(largest, torch.Tensor) else math.ceil(largest) - 1
        k = (held / math.pi).floor().clamp(max=0 if clamp else last)
        ctx.save_for_backward(theta, held, k, held == phi)
        ctx.m = m
        return _sign(k) * torch.cos(held) - 2 * k

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        theta, phi, k, moves = ctx.saved_tensors
        grad = torch.where(moves, grad * _sign(k), 0)
        of_angle = -grad * torch.sin(phi) if ctx.needs_input_grad[2] else None
        return grad * ctx.m * sine_ratio(phi, theta, limit=ctx.m * _sign(k)), None, of_angle, None


def sine_ratio(phi: torch.Tensor, theta: torch.Tensor, limit: float | torch.Tensor) -> torch.Tensor:
    """sin φ / sin θ; if both vanish, `limit`. If only sin θ does, the ratio is bounded by a floor of 1e-4."""
    above, below = torch.sin(phi), torch.sin(theta)
    both = (below < 1e-4) & (above.abs() < 1e-2)
    return torch.where(
        both, torch.as_tensor(limit, dtype=theta.dtype, device=theta.device), above / below.clamp(min=1e-4)
    )


def _sign(k: torch.Tensor) -> torch.Tensor:
    """(-1)^k for integer-valued k."""
    return 1 - 2 * (k % 2)
