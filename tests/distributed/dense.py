"""A dense float64 classifier written from the paper's equations: all logits, one process, no streaming."""

from __future__ import annotations

import math

import torch


def dense_loss(
    x_GD: torch.Tensor, weight_CD: torch.Tensor, labels_G: torch.Tensor, name: str, m: float, lam: float
) -> torch.Tensor:
    """Mean cross-entropy over the global batch; ignored samples (-1) count as zero."""
    losses = []
    for x, label in zip(x_GD, labels_G.tolist(), strict=True):
        if label < 0:
            losses.append(x.sum() * 0)
            continue
        rows = weight_CD if name == "softmax" else weight_CD / weight_CD.square().sum(1, keepdim=True).sqrt()
        logits = rows @ x
        if name == "a_softmax":
            norm = x.square().sum().sqrt()
            theta = torch.arccos((logits[label] / norm).clamp(-1 + 1e-15, 1 - 1e-15))
            k = min(int(m * theta.item() / math.pi), math.ceil(m) - 1)
            own = norm * (lam * torch.cos(theta) + (-1) ** k * torch.cos(m * theta) - 2 * k) / (1 + lam)
            logits = torch.cat([logits[:label], own[None], logits[label + 1 :]])
        top = logits.max()
        losses.append(top + (logits - top).exp().sum().log() - logits[label])
    return torch.stack(losses).mean()
