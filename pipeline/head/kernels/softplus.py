"""The sum over classes of softplus(logit + bias), of binary classifications: in blocks of classes, on any device.

Each class is a classification of its own: there is no maximum to find first and no sum to divide by, so a class's
gradient needs nothing of the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from pipeline.head.kernels.block_passes import blocks, cosines, gradients, slices, target_rows, without_target
from pipeline.head.kernels.kernel import Scoring, Sink
from pipeline.head.kernels.products import exact_product


def nontarget_softplus(
    features_GD: torch.Tensor,
    weight_SD: torch.Tensor,
    target_G: torch.Tensor,
    bias: torch.Tensor,
    scoring: Scoring,
    sink: Sink | None = None,
    rows_n: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_j log(1 + exp(logit_j + bias)) over these rows but each sample's target [G], and its target's row [G, D].

    Gradients flow to features, rows and bias (a scalar). See `Kernel.nontarget_logsumexp` for the rest: purely local.
    """
    assert rows_n is None or sink is not None, "a part of the rows needs a sink"
    return _NontargetSoftplus.apply(features_GD, weight_SD, bias, target_G, scoring, sink, rows_n)


class _NontargetSoftplus(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_GD: torch.Tensor,
        weight_SD: torch.Tensor,
        bias: torch.Tensor,
        target_G: torch.Tensor,
        scoring: Scoring,
        sink: Sink | None,
        rows_n: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total_G = features_GD.new_zeros(features_GD.shape[0])
        for start, rows, _ in blocks(weight_SD, scoring, rows_n):
            products = exact_product(rows, features_GD, scoring.dtype)
            for first, part in slices(products):
                logits, _ = _logits_and_slope(part, target_G - start - first, bias, scoring)
                total_G += F.softplus(logits).sum(0)
            del products, rows  # or the next block's stand beside these
        ctx.save_for_backward(features_GD, weight_SD, bias, target_G)
        ctx.scoring, ctx.sink, ctx.rows_n = scoring, sink, rows_n
        return total_G, target_rows(weight_SD, target_G, rows_n)

    @staticmethod
    def backward(ctx: Any, grad_G: torch.Tensor, grad_target_rows_GD: torch.Tensor) -> tuple[Any, ...]:
        features_GD, weight_SD, bias, target_G = ctx.saved_tensors
        scoring: Scoring = ctx.scoring
        of_bias_G = torch.zeros_like(grad_G)

        def sigmoid(rows: torch.Tensor, start: int) -> torch.Tensor:
            products = exact_product(rows, features_GD, scoring.dtype)
            for first, part in slices(products):
                logits, slope = _logits_and_slope(part, target_G - start - first, bias, scoring)
                probability = logits.sigmoid_()
                of_bias_G.add_(probability.sum(0))
                part.copy_(probability.mul_(slope))
            return products

        of_features, of_rows = gradients(
            features_GD, weight_SD, target_G, scoring, ctx.sink, ctx.rows_n, grad_G, grad_target_rows_GD, sigmoid
        )
        return of_features, of_rows, (of_bias_G * grad_G).sum(), None, None, None, None


def _logits_and_slope(
    products: torch.Tensor, target_G: torch.Tensor, bias: torch.Tensor, scoring: Scoring
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Logits with the bias, a new tensor with -inf at the target classes, and d logit / d product."""
    warp = scoring.warp
    if warp is None:
        return without_target(products + bias, target_G, -torch.inf), 1.0
    cosine = cosines(products, warp.scale)
    return without_target(warp.value(cosine) * warp.scale + bias, target_G, -torch.inf), warp.slope(cosine)
