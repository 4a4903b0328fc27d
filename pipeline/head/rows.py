"""The classifier's rows on one rank: how they start, and two streamed products over them.

The logits [G, S] are never held: blocks of classes are multiplied, used and dropped, and multiplied again in the
backward pass. A rank therefore holds its rows, their gradient, and one block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.head.products import matmul_fp32

# Rows are drawn in runs of this many classes, each from its own seed, so that a class's first row depends on
# (seed, class) alone and not on how the classes are split.
_INIT_RUN = 4096

# Classes whose logits are held at a time. At G = 512 a block and its rows are 4 + 4 MiB in fp32 for D = 512:
# small enough for the caches, large enough for the matrix products.
BLOCK = 2048


def initial_rows(classes: range, embedding_dim: int, seed: int) -> torch.Tensor:
    """Rows [S, D] float32 of `classes`, uniform in ±sqrt(3/D) (Caffe's "xavier", the authors' filler for fc6)."""
    rows = torch.empty(len(classes), embedding_dim)
    bound = (3 / embedding_dim) ** 0.5
    for run in range(classes.start // _INIT_RUN, -(-classes.stop // _INIT_RUN)):
        start = run * _INIT_RUN
        # numpy's seed sequence: torch's CPU generator reads 32 bits of a seed, too few for (seed, run)
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, run])))
        drawn = torch.from_numpy(generator.random((_INIT_RUN, embedding_dim), dtype=np.float32)) * (2 * bound) - bound
        overlap = range(max(start, classes.start), min(start + _INIT_RUN, classes.stop))
        rows[overlap.start - classes.start : overlap.stop - classes.start] = drawn[
            overlap.start - start : overlap.stop - start
        ]
    return rows


def others_logsumexp(
    features_GD: torch.Tensor,
    weight_SD: torch.Tensor,
    own_G: torch.Tensor,
    *,
    normalise_rows: bool,
    dtype: torch.dtype = torch.float32,
    block: int = BLOCK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp of every sample's logits over this rank's classes but its own, and its own row.

    Purely local; no collective. Gradients flow to `features_GD` and `weight_SD` from both results.

    Args:
        features_GD: what the rows are multiplied with.
        weight_SD: this rank's rows.
        own_G: int64, each sample's own class as a row number here, or -1 when another rank owns it.
        normalise_rows: multiply with w/‖w‖.
        dtype: of the products; sums, exponentials and results stay in the features' type.
        block: classes held at a time; memory beyond the arguments, the results and the gradients is
            ``block · (G + 2D)`` numbers.

    Returns:
        logsumexp [G] (-inf where there is no other class here) and raw own rows [G, D] (zeros where own is -1).
    """
    return _OthersLogSumExp.apply(features_GD, weight_SD, own_G, normalise_rows, dtype, block)


class _OthersLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_GD: torch.Tensor,
        weight_SD: torch.Tensor,
        own_G: torch.Tensor,
        normalise_rows: bool,
        dtype: torch.dtype,
        block: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        maximum_G = features_GD.new_full((features_GD.shape[0],), -torch.inf)
        total_G = torch.zeros_like(maximum_G)
        for start in range(0, weight_SD.shape[0], block):
            rows, _ = _block_rows(weight_SD, start, block, normalise_rows)
            logits = _block_logits(features_GD, rows, own_G - start, dtype)
            larger_G = torch.maximum(maximum_G, logits.amax(1))
            # -inf only while no other class was seen; 0 then keeps exp(-inf - 0) = 0 and no NaN.
            shift_G = larger_G.masked_fill(larger_G.isneginf(), 0)
            total_G = total_G * (maximum_G - shift_G).exp() + logits.sub_(shift_G[:, None]).exp_().sum(1)
            maximum_G = larger_G
        logsumexp_G = total_G.log() + maximum_G.masked_fill(maximum_G.isneginf(), 0)
        ctx.save_for_backward(features_GD, weight_SD, own_G, logsumexp_G)
        ctx.options = (normalise_rows, dtype, block)
        own_rows_GD = weight_SD[own_G.clamp(min=0)].masked_fill((own_G < 0)[:, None], 0)
        return logsumexp_G, own_rows_GD

    @staticmethod
    def backward(ctx: Any, grad_G: torch.Tensor, grad_own_rows_GD: torch.Tensor) -> tuple[Any, ...]:
        features_GD, weight_SD, own_G, logsumexp_G = ctx.saved_tensors
        normalise_rows, dtype, block = ctx.options
        grad_features_GD = torch.zeros_like(features_GD)
        grad_weight_SD = torch.empty_like(weight_SD)
        shift_G = logsumexp_G.masked_fill(logsumexp_G.isneginf(), 0)
        scaled_features_GD = features_GD * grad_G[:, None]
        for start in range(0, weight_SD.shape[0], block):
            rows, norms = _block_rows(weight_SD, start, block, normalise_rows)
            logits = _block_logits(features_GD, rows, own_G - start, dtype)
            softmax = logits.sub_(shift_G[:, None]).exp_()
            grad_features_GD += matmul_fp32(softmax, rows, dtype)
            grad_rows = matmul_fp32(softmax.t(), scaled_features_GD, dtype)
            if norms is not None:
                # d(w/‖w‖): the part along w does nothing
                grad_rows -= (grad_rows * rows).sum(1, keepdim=True) * rows
                grad_rows /= norms
            grad_weight_SD[start : start + block] = grad_rows
        # A sample's own row is elsewhere: adding zeros to row 0 for it changes nothing.
        own_grads = grad_own_rows_GD.masked_fill((own_G < 0)[:, None], 0)
        grad_weight_SD.index_add_(0, own_G.clamp(min=0), own_grads)
        return grad_features_GD * grad_G[:, None], grad_weight_SD, None, None, None, None


def _block_rows(
    weight_SD: torch.Tensor, start: int, block: int, normalise: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    rows = weight_SD[start : start + block]
    if not normalise:
        return rows, None
    norms = rows.norm(dim=1, keepdim=True).clamp_(min=1e-12)
    return rows / norms, norms


def _block_logits(
    features_GD: torch.Tensor, rows: torch.Tensor, own_G: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Logits [G, block] with each sample's own class, where it lies in this block, at -inf."""
    logits = matmul_fp32(features_GD, rows.t(), dtype)
    inside = (own_G >= 0) & (own_G < rows.shape[0])
    column = own_G.clamp(0, rows.shape[0] - 1)[:, None]
    kept = logits.gather(1, column)
    return logits.scatter_(1, column, kept.masked_fill(inside[:, None], -torch.inf))


def class_of(labels_G: torch.Tensor, classes: range) -> torch.Tensor:
    """Row numbers on this rank for global labels; -1 for classes of other ranks and for ignored samples."""
    inside = (labels_G >= classes.start) & (labels_G < classes.stop)
    return torch.where(inside, labels_G - classes.start, torch.full_like(labels_G, -1))
