"""Softmax over rows that are never scored all at once: forward and backward in blocks of classes.

The logits [G, S] are not held. A block of classes is multiplied, exponentiated, summed and dropped; the backward pass
multiplies it once more: classes first. That is four products of G·S·D, while holding the logits needs three, and memory
that does not grow with S. Rows of the batch first would need three products and one all-reduce a block, but each of its
blocks is as wide as S: within 64 MiB that leaves 80 samples a block at S = 200,000, and every block reads all rows
three times.

Measured (AMD EPYC, 2 cores, G = D = 512, S = 200,000, fp32, times the three bare products of torch, the same oneDNN
kernels in both): classes first 0.72 with 20 MiB, rows first 1.23 with 61 MiB and 0.80 with 195 MiB. So there is only
the one. Exponentials are powers of two: torch's exp2 takes a fifth of the time of its exp, and log2(e) is multiplied
into the features once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.head.kernels.block_passes import blocks, cosines, gradients, slices, target_rows, without_target
from pipeline.head.kernels.kernel import Scoring, Sink
from pipeline.head.kernels.products import exact_product
from pipeline.head.margins import Margin, Warp
from pipeline.head.margins.binary import BinaryMargin
from pipeline.head.margins.margin import ScaledMargin

_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453
_FP32 = 4

# Classes scored at a time. At G = D = 512 a block's logits, rows and gradient are 4 MiB each in fp32.
BLOCK = 2048


@dataclass(frozen=True)
class BlockLoop:
    """The `Kernel` of torch operators: for any device, margin and type."""

    def nontarget_logsumexp(
        self,
        features_GD: torch.Tensor,
        weight_SD: torch.Tensor,
        target_G: torch.Tensor,
        scoring: Scoring,
        sink: Sink | None = None,
        rows_n: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel`. A running maximum keeps logits of any size safe; every gradient goes to ``sink.take``."""
        assert rows_n is None or sink is not None, "a part of the rows needs a sink"
        return _NontargetLogSumExp.apply(features_GD, weight_SD, target_G, scoring, sink, rows_n)

    def block_of(self, *, batch: int, embedding_dim: int, dtype: torch.dtype) -> int:  # noqa: ARG002 - see `Kernel`
        """See `Kernel`."""
        return BLOCK

    def memory_bytes(
        self, *, rows: int, batch: int, embedding_dim: int, dtype: torch.dtype, block: int | None, margin: Margin
    ) -> int:
        """See `Kernel`. Independent of S once it exceeds the block; 18 MiB at G = D = 512 in fp32.

        The fullest of three moments of a block in the backward pass: its rows with its softmax and what is made of that
        (in fp32 a transposed copy for the product, in bf16 a rounded one); rows, softmax and the rows' gradient; rows,
        gradient and one more product of their size. (Rows that are not normalised lie where they are, and need no such
        product.) Besides, six arrays [G, D]: embeddings, features and target rows with gradients; and one more for a
        softmax of embeddings that are brought to one length, since features are in other units then.
        """
        block, dim = min(block or BLOCK, rows), embedding_dim
        copy = dim if margin.normalises_rows else 0
        arrays = 6 + (isinstance(margin, ScaledMargin) and not isinstance(margin, BinaryMargin))
        if dtype == torch.bfloat16:
            fullest = max(copy + 1.5 * batch, copy + 1.5 * dim + 0.5 * batch, 3 * copy)
        else:
            fullest = max(copy + 2 * batch, copy + dim + batch, 3 * copy)
        return int(_FP32 * (block * fullest + arrays * batch * dim))


class _NontargetLogSumExp(torch.autograd.Function):
    """Blocks are laid out class by class, [block, G]: the larger of the gradient's products reads them in order."""

    @staticmethod
    def forward(
        ctx: Any,
        features_GD: torch.Tensor,
        weight_SD: torch.Tensor,
        target_G: torch.Tensor,
        scoring: Scoring,
        sink: Sink | None,
        rows_n: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        warp = scoring.warp
        features2_GD = features_GD * _LOG2_E
        maximum_G = features_GD.new_full((features_GD.shape[0],), -torch.inf)
        total_G = torch.zeros_like(maximum_G)
        for start, rows, _ in blocks(weight_SD, scoring, rows_n):
            logits = exact_product(rows, features2_GD, scoring.dtype)
            if warp is not None:
                for _, part in slices(logits):
                    part.copy_(_warped(cosines(part, warp.scale * _LOG2_E), warp))
            logits = without_target(logits, target_G - start, -torch.inf)
            larger_G = torch.maximum(maximum_G, logits.amax(0))
            shift_G = _finite(larger_G)
            total_G = total_G * (maximum_G - shift_G).exp2_() + logits.sub_(shift_G).exp2_().sum(0)
            maximum_G = larger_G
            del logits, rows  # or the next block's stand beside these
        logsumexp2_G = total_G.log2() + _finite(maximum_G)
        ctx.save_for_backward(features_GD, weight_SD, target_G, logsumexp2_G)
        ctx.scoring, ctx.sink, ctx.rows_n = scoring, sink, rows_n
        return logsumexp2_G * _LN_2, target_rows(weight_SD, target_G, rows_n)

    @staticmethod
    def backward(ctx: Any, grad_G: torch.Tensor, grad_target_rows_GD: torch.Tensor) -> tuple[Any, ...]:
        features_GD, weight_SD, target_G, logsumexp2_G = ctx.saved_tensors
        scoring: Scoring = ctx.scoring
        features2_GD, shift_G = features_GD * _LOG2_E, _finite(logsumexp2_G)

        def softmax(rows: torch.Tensor, start: int) -> torch.Tensor:
            return without_target(_softmax(rows, features2_GD, shift_G, scoring), target_G - start, 0)

        of_both = gradients(
            features_GD, weight_SD, target_G, scoring, ctx.sink, ctx.rows_n, grad_G, grad_target_rows_GD, softmax
        )
        return (*of_both, None, None, None, None)


def _softmax(rows: torch.Tensor, features2_GD: torch.Tensor, shift_G: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """exp(logit - log-sum-exp), times the warp's slope [block, G]; what stands at the target class means nothing."""
    dtype, warp = scoring.dtype, scoring.warp
    if warp is None:
        return exact_product(rows, features2_GD, dtype, bias_N=-shift_G).exp2_()
    products = exact_product(rows, features2_GD, dtype)
    for _, part in slices(products):
        cosine = cosines(part, warp.scale * _LOG2_E)
        part.copy_(_warped(cosine, warp).sub_(shift_G).exp2_().mul_(warp.slope(cosine)))
    return products


def _warped(cosine: torch.Tensor, warp: Warp) -> torch.Tensor:
    """Logits times log2(e)."""
    return warp.value(cosine) * (warp.scale * _LOG2_E)


def _finite(values_G: torch.Tensor) -> torch.Tensor:
    """-inf, if no non-target class was seen, as 0: then exp(-inf - 0) = 0 and not NaN."""
    return values_G.masked_fill(values_G.isneginf(), 0)
