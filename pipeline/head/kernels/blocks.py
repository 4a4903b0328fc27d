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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.head.kernels.kernel import Scoring, Sink
from pipeline.head.kernels.products import exact_product, gradient_factor, gradient_product
from pipeline.head.margins import Margin, Warp
from pipeline.head.margins.margin import ScaledMargin

_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453
_FP32 = 4

# Numbers of a block that a warp works on at a time: what fits a core's cache, or is worth a launch.
_SLICE_NUMBERS, _SLICE_NUMBERS_ON_DEVICES = 2**15, 2**20

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
        product.) Besides, six arrays [G, D]: embeddings, features and target rows with gradients; and one more if
        embeddings are brought to one length.
        """
        block, dim = min(block or BLOCK, rows), embedding_dim
        copy = dim if margin.normalises_rows else 0
        arrays = 6 + isinstance(margin, ScaledMargin)
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
        for start, rows, _ in _blocks(weight_SD, scoring, rows_n):
            logits = exact_product(rows, features2_GD, scoring.dtype)
            if warp is not None:
                for part, cosine in _slices(logits, warp):
                    part.copy_(_warped(cosine, warp))
            logits = _without_target(logits, target_G - start, -torch.inf)
            larger_G = torch.maximum(maximum_G, logits.amax(0))
            shift_G = _finite(larger_G)
            total_G = total_G * (maximum_G - shift_G).exp2_() + logits.sub_(shift_G).exp2_().sum(0)
            maximum_G = larger_G
            del logits, rows  # or the next block's stand beside these
        logsumexp2_G = total_G.log2() + _finite(maximum_G)
        ctx.save_for_backward(features_GD, weight_SD, target_G, logsumexp2_G)
        ctx.scoring, ctx.sink, ctx.rows_n = scoring, sink, rows_n
        number_G = target_G.clamp(min=0)
        target_rows_GD = weight_SD[number_G if rows_n is None else rows_n[number_G]]
        return logsumexp2_G * _LN_2, target_rows_GD.masked_fill((target_G < 0)[:, None], 0)

    @staticmethod
    def backward(ctx: Any, grad_G: torch.Tensor, grad_target_rows_GD: torch.Tensor) -> tuple[Any, ...]:
        features_GD, weight_SD, target_G, logsumexp2_G = ctx.saved_tensors
        scoring, sink = ctx.scoring, ctx.sink
        dtype: torch.dtype = scoring.dtype
        features2_GD = features_GD * _LOG2_E
        scaled_GD = gradient_factor(features_GD * grad_G[:, None], dtype)
        grad_features_GD = torch.zeros_like(features_GD)
        grad_weight_SD = torch.empty_like(weight_SD) if sink is None else None
        shift_G = _finite(logsumexp2_G)
        for start, rows, norms in _blocks(weight_SD, scoring, ctx.rows_n):
            softmax = _softmax(features2_GD, rows, target_G - start, shift_G, scoring)
            softmax = gradient_factor(softmax, dtype)
            grad_features_GD += gradient_product(softmax.t(), gradient_factor(rows, dtype))
            grad_rows = gradient_product(softmax, scaled_GD)
            del softmax
            place = grad_rows if grad_weight_SD is None else grad_weight_SD[start : start + len(rows)]
            if norms is None:
                place.copy_(grad_rows)
            else:
                # d(w/‖w‖)/dw: the part along w does nothing
                grad_rows.addcmul_((grad_rows * rows).sum(1, keepdim=True), rows, value=-1)
                torch.div(grad_rows, norms, out=place)
            if grad_weight_SD is None:
                _add_target(grad_rows, grad_target_rows_GD, target_G - start)
                sink.take(start, grad_rows)
            del grad_rows, place, rows
        if grad_weight_SD is not None:
            _add_target(grad_weight_SD, grad_target_rows_GD, target_G)
        return grad_features_GD.mul_(grad_G[:, None]), grad_weight_SD, None, None, None, None


def _blocks(
    weight_SD: torch.Tensor, scoring: Scoring, rows_n: torch.Tensor | None
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
    """First row, the rows as they are multiplied, and their lengths (None if they are not normalised)."""
    for start in range(0, len(weight_SD if rows_n is None else rows_n), scoring.block):
        part = slice(start, start + scoring.block)
        rows = weight_SD[part if rows_n is None else rows_n[part]]
        if not scoring.normalise_rows:
            yield start, rows, None
            continue
        norms = rows.norm(dim=1, keepdim=True).clamp_(min=1e-12)
        yield start, rows / norms, norms


def _softmax(
    features2_GD: torch.Tensor,
    rows: torch.Tensor,
    target_G: torch.Tensor,
    shift_G: torch.Tensor,
    scoring: Scoring,
) -> torch.Tensor:
    """d logsumexp / d(row · features) [block, G]: the softmax over the non-target classes, times the warp's slope."""
    dtype, warp = scoring.dtype, scoring.warp
    if warp is None:
        softmax = exact_product(rows, features2_GD, dtype, bias_N=-shift_G).exp2_()
    else:
        softmax = exact_product(rows, features2_GD, dtype)
        for part, cosine in _slices(softmax, warp):
            part.copy_(_warped(cosine, warp).sub_(shift_G).exp2_().mul_(warp.slope(cosine)))
    return _without_target(softmax, target_G, 0)


def _warped(cosine: torch.Tensor, warp: Warp) -> torch.Tensor:
    """Logits times log2(e)."""
    return warp.value(cosine) * (warp.scale * _LOG2_E)


def _slices(products: torch.Tensor, warp: Warp) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A block's plain products s cos θ times log2(e) [block, G], some classes at a time, and the cosines of these.

    What a warp makes of a slice stays in the cache, and never is as large as a block.
    """
    block, batch = products.shape
    numbers = _SLICE_NUMBERS if products.device.type == "cpu" else _SLICE_NUMBERS_ON_DEVICES
    for part in products.split(max(1, min(numbers // batch, block // 8))):
        yield part, (part / (warp.scale * _LOG2_E)).clamp_(-1, 1)


def _without_target(values: torch.Tensor, target_G: torch.Tensor, fill: float) -> torch.Tensor:
    """`values` [block, G], in place, with `fill` at each sample's target class if that lies in the block."""
    inside = (target_G >= 0) & (target_G < values.shape[0])
    row = target_G.clamp(0, values.shape[0] - 1)[None]
    return values.scatter_(0, row, values.gather(0, row).masked_fill_(inside, fill))


def _add_target(grad_rows: torch.Tensor, grad_target_rows_GD: torch.Tensor, target_G: torch.Tensor) -> None:
    """Add the target rows' gradients that fall into this block; the rest add zeros to its first or last row."""
    inside = (target_G >= 0) & (target_G < grad_rows.shape[0])
    place = target_G.clamp(0, grad_rows.shape[0] - 1)
    grad_rows.index_add_(0, place, grad_target_rows_GD.masked_fill(~inside[:, None], 0))


def _finite(values_G: torch.Tensor) -> torch.Tensor:
    """-inf, if no non-target class was seen, as 0: then exp(-inf - 0) = 0 and not NaN."""
    return values_G.masked_fill(values_G.isneginf(), 0)
