"""Softmax over rows that are never scored all at once: forward and backward in blocks of classes.

The logits [G, S] are not held. A block of classes is multiplied, exponentiated, summed and dropped; the backward pass
multiplies it once more: classes first. That is four products of G·S·D where holding the logits needs three, and memory
that does not grow with S. Rows of the batch first would need three products and one all-reduce a block, but each of its
blocks is as wide as S: within 64 MiB that leaves 80 samples a block at S = 200,000, and every block reads all rows
three times.

Measured (AMD EPYC, 2 cores, G = D = 512, S = 200,000, fp32, times the three bare products of torch, the same oneDNN
kernels in both): classes first 0.72 with 20 MiB, rows first 1.23 with 61 MiB and 0.80 with 195 MiB. So there is only
the one. Exponentials are powers of two: torch's exp2 takes a fifth of the time of its exp, and log2(e) is multiplied
into the features once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipeline.head.kernels.products import exact_product, gradient_factor, gradient_product
from pipeline.head.margins import Warp

# Classes scored at a time. At G = D = 512 a block's logits, rows and gradient are 4 MiB each in fp32.
BLOCK = 2048

_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453

# What takes a finished block of the rows' gradient: (first row, gradient [block, D]).
Sink = Callable[[int, torch.Tensor], None]


def others_logsumexp(
    features_GD: torch.Tensor,
    weight_SD: torch.Tensor,
    own_G: torch.Tensor,
    *,
    normalise_rows: bool,
    warp: Warp | None = None,
    dtype: torch.dtype = torch.float32,
    block: int = BLOCK,
    sink: Sink | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp of every sample's logits over these rows but its own, and its own row.

    Purely local; no collective. Gradients flow to `features_GD` and `weight_SD` from both results. The running maximum
    keeps logits of any size safe.

    Args:
        features_GD: what the rows are multiplied with.
        weight_SD: the rows.
        own_G: int64, each sample's own class as a row number here, or -1 where it has none.
        normalise_rows: multiply with w/‖w‖.
        warp: what happens to the logits of the other classes.
        dtype: of the products' factors (float32 or bfloat16); sums and results stay in the features' type.
        block: classes held at a time. Memory beyond the arguments, the results and the gradients is
            ``block · max(D + 2G, 2D + G, 3D) + 6·G·D`` numbers whatever S is, 18 MiB at G = D = 512.
        sink: takes each block of the rows' gradient as soon as it exists; the whole gradient is then never held, and
            ``weight_SD.grad`` stays as it is. The sink may change those rows in place.

    Returns:
        logsumexp [G] (-inf where there is no other class here) and raw own rows [G, D] (zeros where own is -1).
    """
    return _OthersLogSumExp.apply(features_GD, weight_SD, own_G, (normalise_rows, warp, dtype, block, sink))


class _OthersLogSumExp(torch.autograd.Function):
    """Blocks stand class by class, [block, G]: so the larger of the gradient's products reads them in order."""

    @staticmethod
    def forward(
        ctx: Any, features_GD: torch.Tensor, weight_SD: torch.Tensor, own_G: torch.Tensor, options: tuple[Any, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normalise_rows, warp, dtype, block, _ = options
        features2_GD = features_GD * _LOG2_E
        maximum_G = features_GD.new_full((features_GD.shape[0],), -torch.inf)
        total_G = torch.zeros_like(maximum_G)
        for start, rows, _ in _blocks(weight_SD, block, normalise_rows):
            logits = exact_product(rows, features2_GD, dtype)
            if warp is not None:
                logits = _warped(logits, warp)
            logits = _without_own(logits, own_G - start, -torch.inf)
            larger_G = torch.maximum(maximum_G, logits.amax(0))
            shift_G = _finite(larger_G)
            total_G = total_G * (maximum_G - shift_G).exp2_() + logits.sub_(shift_G).exp2_().sum(0)
            maximum_G = larger_G
            del logits, rows  # or the next block's stand beside these
        logsumexp2_G = total_G.log2() + _finite(maximum_G)
        ctx.save_for_backward(features_GD, weight_SD, own_G, logsumexp2_G)
        ctx.options = options
        own_rows_GD = weight_SD[own_G.clamp(min=0)].masked_fill((own_G < 0)[:, None], 0)
        return logsumexp2_G * _LN_2, own_rows_GD

    @staticmethod
    def backward(ctx: Any, grad_G: torch.Tensor, grad_own_rows_GD: torch.Tensor) -> tuple[Any, ...]:
        features_GD, weight_SD, own_G, logsumexp2_G = ctx.saved_tensors
        normalise_rows, warp, dtype, block, sink = ctx.options
        features2_GD = features_GD * _LOG2_E
        scaled_GD = gradient_factor(features_GD * grad_G[:, None], dtype)
        grad_features_GD = torch.zeros_like(features_GD)
        grad_weight_SD = None if sink else torch.empty_like(weight_SD)
        shift_G = _finite(logsumexp2_G)
        for start, rows, norms in _blocks(weight_SD, block, normalise_rows):
            softmax = _softmax(features2_GD, rows, own_G - start, shift_G, warp, dtype)
            softmax = gradient_factor(softmax, dtype)
            grad_features_GD += gradient_product(softmax.t(), gradient_factor(rows, dtype))
            grad_rows = gradient_product(softmax, scaled_GD)
            del softmax
            place = grad_rows if grad_weight_SD is None else grad_weight_SD[start : start + block]
            if norms is None:
                place.copy_(grad_rows)
            else:
                # d(w/‖w‖)/dw: the part along w does nothing
                grad_rows.addcmul_((grad_rows * rows).sum(1, keepdim=True), rows, value=-1)
                torch.div(grad_rows, norms, out=place)
            if grad_weight_SD is None:
                _add_own(grad_rows, grad_own_rows_GD, own_G - start)
                sink(start, grad_rows)
            del grad_rows, place, rows
        if grad_weight_SD is not None:
            _add_own(grad_weight_SD, grad_own_rows_GD, own_G)
        return grad_features_GD.mul_(grad_G[:, None]), grad_weight_SD, None, None


def _blocks(
    weight_SD: torch.Tensor, block: int, normalise: bool
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
    """First row, the rows as they are multiplied, and their lengths (None where they are not normalised)."""
    for start in range(0, weight_SD.shape[0], block):
        rows = weight_SD[start : start + block]
        if not normalise:
            yield start, rows, None
            continue
        norms = rows.norm(dim=1, keepdim=True).clamp_(min=1e-12)
        yield start, rows / norms, norms


def _softmax(
    features2_GD: torch.Tensor,
    rows: torch.Tensor,
    own_G: torch.Tensor,
    shift_G: torch.Tensor,
    warp: Warp | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """d logsumexp / d(row · features) [block, G]: the softmax over the other classes, times the warp's slope."""
    if warp is None:
        softmax = exact_product(rows, features2_GD, dtype, bias_N=-shift_G).exp2_()
    else:
        products = exact_product(rows, features2_GD, dtype)
        slope = warp.slope(_cosine(products, warp))
        softmax = _warped(products, warp).sub_(shift_G).exp2_().mul_(slope)
    return _without_own(softmax, own_G, 0)


def _warped(products: torch.Tensor, warp: Warp) -> torch.Tensor:
    """Logits times log2(e) from the plain products s cos θ times log2(e)."""
    return warp.value(_cosine(products, warp)).mul_(warp.scale * _LOG2_E)


def _cosine(products: torch.Tensor, warp: Warp) -> torch.Tensor:
    return (products / (warp.scale * _LOG2_E)).clamp_(-1, 1)


def _without_own(values: torch.Tensor, own_G: torch.Tensor, fill: float) -> torch.Tensor:
    """`values` [block, G] with each sample's own class set to `fill`, in place; own outside the block: untouched."""
    inside = (own_G >= 0) & (own_G < values.shape[0])
    row = own_G.clamp(0, values.shape[0] - 1)[None]
    return values.scatter_(0, row, values.gather(0, row).masked_fill_(inside, fill))


def _add_own(grad_rows: torch.Tensor, grad_own_rows_GD: torch.Tensor, own_G: torch.Tensor) -> None:
    """Add the own rows' gradients that fall into this block; others add zeros to its first or last row."""
    inside = (own_G >= 0) & (own_G < grad_rows.shape[0])
    own = own_G.clamp(0, grad_rows.shape[0] - 1)
    grad_rows.index_add_(0, own, grad_own_rows_GD.masked_fill(~inside[:, None], 0))


def _finite(values_G: torch.Tensor) -> torch.Tensor:
    """-inf, where no other class was seen, as 0: then exp(-inf - 0) = 0 and not NaN."""
    return values_G.masked_fill(values_G.isneginf(), 0)
