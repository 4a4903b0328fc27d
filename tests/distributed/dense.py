"""A dense float64 classifier written from the papers' equations: all logits, one process, no streaming."""

from __future__ import annotations

import math
from typing import Any

import torch

from pipeline.head.margins import Margin


def dense_loss(
    x_GD: torch.Tensor, weight_CD: torch.Tensor, labels_G: torch.Tensor, margin: Margin, lambda_: float
) -> torch.Tensor:
    """Mean cross-entropy over the samples of the global batch that have a label (not -1); 0 if none has."""
    labelled = [(x, label) for x, label in zip(x_GD, labels_G.tolist(), strict=True) if label >= 0]
    if not labelled:
        return x_GD.sum() * 0
    return torch.stack([_sample_loss(x, weight_CD, label, margin, lambda_) for x, label in labelled]).mean()


def _sample_loss(x: torch.Tensor, weight_CD: torch.Tensor, label: int, margin: Margin, lambda_: float) -> torch.Tensor:
    keys = margin.model_dump()
    if margin.name == "softmax":
        logits = weight_CD @ x
    else:
        unit_CD = weight_CD / weight_CD.square().sum(1, keepdim=True).sqrt()
        norm = x.square().sum().sqrt()
        cosines = (unit_CD @ (x / norm)).clamp(-1 + 1e-15, 1 - 1e-15)
        length = norm if margin.name in {"modified_softmax", "a_softmax"} else keys["scale"]
        target = _target(torch.arccos(cosines[label]), keys, lambda_)
        rest = cosines
        if margin.name == "sphereface_r_v2":
            rest = torch.cos(torch.arccos(cosines) / keys["m"])
            if keys["detached"]:
                rest = cosines + (rest - cosines).detach()
        if keys.get("detached"):
            target = cosines[label] + (target - cosines[label]).detach()
        logits = length * torch.cat([rest[:label], target[None], rest[label + 1 :]])
    top = logits.max()
    return top + (logits - top).exp().sum().log() - logits[label]


def _target(theta: torch.Tensor, keys: dict[str, Any], lambda_: float) -> torch.Tensor:
    """The target logit over its length, by the table of `pipeline.head.margins`."""
    m, a, b = keys.get("m", math.nan), keys.get("angle", math.nan), keys.get("cosine", math.nan)

    def a_softmax() -> torch.Tensor:
        return (lambda_ * torch.cos(theta) + _extended(m * theta, m * math.pi)) / (1 + lambda_)

    by_name = {
        "modified_softmax": lambda: torch.cos(theta),
        "a_softmax": a_softmax,
        "a_softmax_normalised": a_softmax,
        "sphereface_r_v1": lambda: torch.cos(torch.minimum(m * theta, torch.tensor(math.pi, dtype=theta.dtype))),
        "sphereface_r_v2": lambda: torch.cos(theta),
        "cosface": lambda: torch.cos(theta) - b,
        "arcface": lambda: _extended(theta + a, math.pi + a),
        "combined": lambda: _extended(m * theta + a, m * math.pi + a) - b,
    }
    return by_name[keys["name"]]()


def _extended(phi: torch.Tensor, largest: float) -> torch.Tensor:
    """(-1)^k cos φ - 2k with k = ⌊φ/π⌋, the largest φ counted to the interval before it."""
    k = min(int(phi.item() / math.pi), math.ceil(largest / math.pi - 1e-12) - 1)
    return (-1) ** k * torch.cos(phi) - 2 * k
