"""The head's kernel for NVIDIA GPUs: blocks of classes that stay in the L2, captured as one CUDA graph a pass.

What a block goes through stands in `triton_ops`, how large it is in `triton_tiles`, and the launches of a pass over all
blocks, with their graph, in `triton_passes`. A block's rows as factors, its softmax and its gradient are written and
read once each; while they fit into the L2 together they cost no memory traffic, and what is left are the bytes of rows
and optimizer state.

The results repeat bit for bit without a switch: no atomics, and every sum has one order.

Precision. bfloat16 factors: sums, log-sum-exp, rows and update are float32; the factors and the softmax are rounded, a
relative 2^-9 each. float32 factors: ``tf32x3`` splits each into two TF32 numbers, 22 bits, and drops the product of the
two small ones: a product is off by at most 3 · 2^-22 of the two lengths, 7e-7 · ‖x‖ for a logit, where one TF32
product is off by 2^-10 · ‖x‖.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pipeline.head.kernels.blocks import BLOCK, BlockLoop
from pipeline.head.kernels.kernel import RowGradient, Scoring, Sink
from pipeline.head.kernels.triton_passes import Capture, Passes, SgdUpdate, cuda_graphs
from pipeline.head.kernels.triton_tiles import (
    Tiles,
    block_in_cache,
    class_bytes,
    device_l2_bytes,
    padded_block,
    tiles_of,
)
from pipeline.head.margins import Margin, Warp
from pipeline.head.margins.binary import BinaryMargin
from pipeline.head.margins.sphereface_r import DividedAngle

_LN_2 = 0.6931471805599453
_FP32 = 4


def takes(margin: Margin) -> bool:
    """Whether the programs compute this margin: its non-target logits are plain, or warped in a way that they know."""
    fixed = type(margin).warp_of_batch is Margin.warp_of_batch
    return fixed and _knows(margin.warp) and not isinstance(margin, BinaryMargin)


def _knows(warp: Warp | None) -> bool:
    return warp is None or isinstance(warp, DividedAngle)


class TritonLoop:
    """The `Kernel` of Triton programs, for float32, bfloat16 and float16 factors.

    Of warps they know `DividedAngle`; a margin that begins to have another in the course of training is computed by the
    block loop of torch operators from then on. An instance belongs to one head: it keeps the buffers and graphs of that
    head's shapes.

    Args:
        tiles: the shapes of the programs; None: those that are known to fit the type.
        capture: makes a graph of launches; None: a CUDA graph, and on the CPU (Triton's interpreter) none.
    """

    def __init__(self, tiles: Tiles | None = None, capture: Capture | None = None) -> None:
        self._tiles, self._capture = tiles, capture
        self._passes: dict[tuple[object, ...], Passes] = {}

    def nontarget_logsumexp(
        self,
        features_GD: torch.Tensor,
        weight_SD: torch.Tensor,
        target_G: torch.Tensor,
        scoring: Scoring,
        sink: Sink | None = None,
        rows_n: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel`. SGD's update, or the gradient's sum, is part of the backward pass if the sink allows it."""
        if not _knows(scoring.warp):
            small = replace(scoring, block=min(scoring.block, BLOCK))
            return BlockLoop().nontarget_logsumexp(features_GD, weight_SD, target_G, small, sink, rows_n)
        assert rows_n is None or sink is not None, "a part of the rows needs a sink"
        return _NontargetLogSumExp.apply(features_GD, weight_SD, target_G, scoring, sink, rows_n, self)

    def block_of(self, *, batch: int, embedding_dim: int, dtype: torch.dtype) -> int:
        """See `Kernel`."""
        return block_in_cache(batch, embedding_dim, dtype, device_l2_bytes())

    def memory_bytes(
        self,
        *,
        rows: int,
        batch: int,
        embedding_dim: int,
        dtype: torch.dtype,
        block: int | None,
        margin: Margin,  # noqa: ARG002 - see `Kernel`
    ) -> int:
        """See `Kernel`: what is made of a block, the running maxima and sums, and arrays [G, D]; whatever S is.

        Of those arrays there are eleven in float32 (features, target rows and the gradients of both, here and at fixed
        addresses; embeddings and their gradient; a product) and two of factors.
        """
        tiles = self._tiles or tiles_of(dtype)
        block = block or self.block_of(batch=batch, embedding_dim=embedding_dim, dtype=dtype)
        block = padded_block(block, rows, tiles)
        parts = 2 * _FP32 * (block // tiles.classes) * batch
        arrays = (11 * _FP32 + 2 * dtype.itemsize) * batch * embedding_dim
        return block * (class_bytes(batch, embedding_dim, dtype) + _FP32) + parts + arrays

    def passes(self, features_GD: torch.Tensor, weight_SD: torch.Tensor, scoring: Scoring, sampled: bool) -> Passes:
        """The buffers and graphs for these shapes; made at the first call, and again when the rows have moved."""
        key = (*features_GD.shape, *weight_SD.shape, weight_SD.data_ptr(), scoring, sampled)
        if key not in self._passes:
            tiles = self._tiles or tiles_of(scoring.dtype)
            capture = self._capture or (cuda_graphs() if weight_SD.is_cuda else None)
            self._passes = {key: Passes(features_GD, weight_SD, scoring, sampled, tiles, capture)}
        return self._passes[key]


class _NontargetLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_GD: torch.Tensor,
        weight_SD: torch.Tensor,
        target_G: torch.Tensor,
        scoring: Scoring,
        sink: Sink | None,
        rows_n: torch.Tensor | None,
        kernel: TritonLoop,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        passes = kernel.passes(features_GD, weight_SD, scoring, sampled=rows_n is not None)
        passes.load(features_GD, target_G, rows_n)
        logsumexp2_G, target_rows_GD = passes.forward()
        ctx.save_for_backward(features_GD, weight_SD, target_G, logsumexp2_G)
        ctx.passes, ctx.sink, ctx.rows_n = passes, sink, rows_n
        return logsumexp2_G * _LN_2, target_rows_GD

    @staticmethod
    def backward(ctx: Any, grad_G: torch.Tensor, grad_target_rows_GD: torch.Tensor) -> tuple[Any, ...]:
        features_GD, weight_SD, target_G, logsumexp2_G = ctx.saved_tensors
        passes: Passes = ctx.passes
        # Not what the last forward pass left in the buffers: several forward passes may lie between.
        passes.load(features_GD, target_G, ctx.rows_n)
        passes.load_gradients(logsumexp2_G, grad_G, grad_target_rows_GD)
        sink: Sink | None = ctx.sink
        grad_weight_SD = None
        if sink is None:
            grad_weight_SD = torch.empty_like(weight_SD)
            passes.backward_into(grad_weight_SD)
        elif isinstance(sink.instead, RowGradient):
            passes.backward_into_sum(sink.instead)
        elif sink.instead is not None and (sgd := SgdUpdate.of(sink.instead)) is not None:
            passes.backward_with_update(sgd)
        else:
            passes.backward_in_blocks(sink.take)
        return passes.grad_features(), grad_weight_SD, None, None, None, None, None
