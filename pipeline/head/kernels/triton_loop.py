"""The head's kernel for NVIDIA GPUs: blocks of classes that stay in the L2, captured as one CUDA graph a pass.

What a block goes through stands in `triton_ops`. Here: how large a block is, the buffers of a pass, its launches, and
their graph. A block's rows as factors, its softmax and its gradient are written and read once each; while they fit into
the L2 together they cost no memory traffic, and what is left are the bytes of rows and optimizer state. Small blocks
mean many launches, which Python pays with 20 to 50 µs each; a graph replays them at 1 to 2 µs. So the first call of a
pass runs as it is (and compiles), the second is captured, and the host time of all others does not depend on C.

The results repeat bit for bit without a switch: no atomics, and every sum has one order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton

from pipeline.head.kernels import triton_ops as ops
from pipeline.head.kernels.blocks import BlockLoop
from pipeline.head.kernels.kernel import FusedUpdate, Scoring, Sink
from pipeline.head.margins.sphereface_r import DividedAngle
from pipeline.optim.sgd import SGD

_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453
_FP32 = 4
_NO_ROW = 2**31 - 1  # sorts behind every row

# Of the L2, what a block may fill: the rest is for rows and state that pass through, and for the features.
_L2_SHARE = 0.7
# An H100's, for plans that are made where there is no GPU.
_L2_BYTES = 50 * 2**20


@dataclass(frozen=True)
class Tiles:
    """The shapes of the programs: none of them spills registers on sm_80, sm_90 or sm_100.

    Attributes:
        samples, classes, depth: of a tile of logits [samples, classes] over `depth` numbers of D at a time.
        warps, stages: of its programs.
        group: tiles of classes that are worked on side by side, for the L2.
        rows: of a program that normalises or finishes rows.
        product: of a tile of a float32 product, all three sides.
    """

    samples: int = 128
    classes: int = 128
    depth: int = 64
    warps: int = 8
    stages: int = 3
    group: int = 8
    rows: int = 8
    product: int = 64


TILES = Tiles()
# Three TF32 products keep twice the operands: smaller tiles.
TILES_FP32 = Tiles(samples=64, classes=64, depth=32, warps=4, stages=2)


def tiles_of(dtype: torch.dtype) -> Tiles:
    """The shapes for a type of the factors."""
    return TILES_FP32 if dtype == torch.float32 else TILES


def block_in_cache(batch: int, embedding_dim: int, dtype: torch.dtype, l2_bytes: int) -> int:
    """Classes of a block: as many as fit the L2 with all that is made of them, a multiple of 1,024, 64 Ki at most.

    A class has a row of factors, G numbers of softmax and a row of gradient.
    """
    a_class = (embedding_dim + batch) * dtype.itemsize + embedding_dim * _FP32
    return min(max(int(_L2_SHARE * l2_bytes / a_class) // 1024, 1), 64) * 1024


@dataclass(frozen=True)
class SgdUpdate:
    """SGD with momentum, as `finish_rows` does it: the rows' momentum [S, D], μ, weight decay, and this step's rate."""

    momentum_SD: torch.Tensor
    momentum: float
    weight_decay: float
    learning_rate: float

    @classmethod
    def of(cls, update: FusedUpdate | None) -> SgdUpdate | None:
        """The numbers of an update by SGD; None if there is none, or by another optimizer."""
        if update is None or type(update.optimizer.optimizer) is not SGD:
            return None
        sgd = update.optimizer.optimizer
        return cls(update.optimizer.slots["momentum"], sgd.momentum, sgd.weight_decay, update.learning_rate)


class TritonLoop:
    """The `Kernel` of Triton programs, for float32, bfloat16 and float16 factors.

    Of warps they know `DividedAngle`; with another one the block loop of torch operators computes. An instance belongs
    to one head: it keeps the buffers and graphs of that head's shapes.

    Args:
        tiles: the shapes of the programs; None: those that are known to fit the type.
    """

    def __init__(self, tiles: Tiles | None = None) -> None:
        self._tiles = tiles
        self._passes: dict[tuple[object, ...], _Passes] = {}

    def nontarget_logsumexp(
        self,
        features_GD: torch.Tensor,
        weight_SD: torch.Tensor,
        target_G: torch.Tensor,
        scoring: Scoring,
        sink: Sink | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel`. SGD's update is part of the backward pass if ``sink.update`` allows it."""
        if scoring.warp is not None and not isinstance(scoring.warp, DividedAngle):
            return BlockLoop().nontarget_logsumexp(features_GD, weight_SD, target_G, scoring, sink)
        return _NontargetLogSumExp.apply(features_GD, weight_SD, target_G, scoring, sink, self)

    def block_of(self, *, batch: int, embedding_dim: int, dtype: torch.dtype) -> int:
        """See `Kernel`."""
        return block_in_cache(batch, embedding_dim, dtype, _l2_bytes())

    def memory_bytes(self, *, rows: int, batch: int, embedding_dim: int, dtype: torch.dtype, block: int | None) -> int:
        """See `Kernel`: a block's buffers, the running maxima and sums, and seven arrays [G, D]; whatever S is."""
        tiles = self._tiles or tiles_of(dtype)
        block = block or self.block_of(batch=batch, embedding_dim=embedding_dim, dtype=dtype)
        block = _padded(block, rows, tiles)
        a_class = (embedding_dim + batch) * dtype.itemsize + (embedding_dim + 1) * _FP32
        parts = 2 * _FP32 * (block // tiles.classes) * batch
        return block * a_class + parts + 7 * _FP32 * batch * embedding_dim

    def passes(self, features_GD: torch.Tensor, weight_SD: torch.Tensor, scoring: Scoring) -> _Passes:
        """The buffers and graphs for these shapes; made at the first call, and again when the rows have moved."""
        key = (*features_GD.shape, *weight_SD.shape, weight_SD.data_ptr(), scoring)
        if key not in self._passes:
            batch, dim = features_GD.shape
            block = scoring.block or self.block_of(batch=batch, embedding_dim=dim, dtype=scoring.dtype)
            tiles = self._tiles or tiles_of(scoring.dtype)
            self._passes = {key: _Passes(features_GD, weight_SD, scoring, block, tiles)}
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
        kernel: TritonLoop,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        passes = kernel.passes(features_GD, weight_SD, scoring)
        logsumexp2_G = passes.forward(features_GD, target_G)
        ctx.save_for_backward(features_GD, weight_SD, target_G, logsumexp2_G)
        ctx.passes, ctx.sink = passes, sink
        target_rows_GD = weight_SD[target_G.clamp(min=0)].masked_fill((target_G < 0)[:, None], 0)
        return logsumexp2_G * _LN_2, target_rows_GD

    @staticmethod
    def backward(ctx: Any, grad_G: torch.Tensor, grad_target_rows_GD: torch.Tensor) -> tuple[Any, ...]:
        features_GD, weight_SD, target_G, logsumexp2_G = ctx.saved_tensors
        # Not what the last forward pass left in the buffers: with accumulation several forward passes may lie between.
        ctx.passes.load(features_GD, target_G, logsumexp2_G, grad_G, grad_target_rows_GD)
        sink: Sink | None = ctx.sink
        grad_weight_SD = None
        if sink is None:
            grad_weight_SD = torch.empty_like(weight_SD)
            ctx.passes.backward_into(grad_weight_SD)
        elif (sgd := SgdUpdate.of(sink.update)) is not None:
            ctx.passes.backward_with_update(sgd)
        else:
            ctx.passes.backward_in_blocks(sink.take)
        return ctx.passes.grad_features_GD.clone(), grad_weight_SD, None, None, None, None


class _Passes:
    """Buffers of fixed addresses for one set of shapes, and the launches that read and write them."""

    def __init__(
        self, features_GD: torch.Tensor, weight_SD: torch.Tensor, scoring: Scoring, block: int, tiles: Tiles
    ) -> None:
        batch, dim = features_GD.shape
        device, dtype = features_GD.device, scoring.dtype
        assert scoring.warp is None or isinstance(scoring.warp, DividedAngle)
        self._weight_SD, self._warp, self._unit, self._tiles = (
            weight_SD.detach(),
            scoring.warp,
            scoring.normalise_rows,
            tiles,
        )
        self._block = _padded(block, weight_SD.shape[0], tiles)
        self._count = torch.tensor(weight_SD.shape[0], dtype=torch.int32, device=device)
        # cuBLAS for factors that tensor cores take as they are; the interpreter's tensors lie on the CPU.
        self._library = device.type == "cuda" and dtype != torch.float32
        self._precision = "tf32x3" if dtype == torch.float32 else "tf32"

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self._features_GD, self._scaled_GD = empty(batch, dim, dtype=dtype), empty(batch, dim, dtype=dtype)
        self._target_G, self._logsumexp2_G, self._grad_G = empty(batch, dtype=torch.int32), empty(batch), empty(batch)
        self._target_grads_GD, self.grad_features_GD = empty(batch, dim), empty(batch, dim)
        # Padded to a power of two beyond G: the binary search always ends on a number that is no row's.
        self._sorted_targets = empty(1 << batch.bit_length(), dtype=torch.int32)
        self._target_order = torch.empty_like(self._sorted_targets, dtype=torch.int64)
        self._factors, self._inverse = empty(self._block, dim, dtype=dtype), empty(self._block)
        self._softmax, self._product = empty(batch, self._block, dtype=dtype), empty(self._block, dim)
        self._maximum, self._total = (
            empty(self._block // tiles.classes, batch),
            empty(self._block // tiles.classes, batch),
        )
        self._rate = empty()
        self._forward = Replayed(self._forward_launches, device)
        self._backward: dict[object, Replayed] = {}
        self._device = device

    def forward(self, features_GD: torch.Tensor, target_G: torch.Tensor) -> torch.Tensor:
        """Log-sum-exp [G] over the non-target classes, in units of log2(e)."""
        torch.mul(features_GD, _LOG2_E, out=self._scaled_GD)
        self._target_G.copy_(target_G)
        self._forward()
        return self._logsumexp2_G.clone()

    def load(
        self,
        features_GD: torch.Tensor,
        target_G: torch.Tensor,
        logsumexp2_G: torch.Tensor,
        grad_G: torch.Tensor,
        target_grads_GD: torch.Tensor,
    ) -> None:
        """Copy in what a backward pass reads."""
        torch.mul(features_GD, _LOG2_E, out=self._scaled_GD)
        self._features_GD.copy_(features_GD)
        self._target_G.copy_(target_G)
        self._logsumexp2_G.copy_(logsumexp2_G)
        self._grad_G.copy_(grad_G)
        self._target_grads_GD.copy_(target_grads_GD)

    def backward_into(self, grad_SD: torch.Tensor) -> None:
        """The whole gradient of the rows. (Its address is new at every call: this is not captured.)"""
        self._backward_launches("store", grad_SD)

    def backward_with_update(self, update: SgdUpdate) -> None:
        """Update rows and momentum as soon as a block's gradient exists."""
        self._rate.fill_(update.learning_rate)
        key = (update.momentum_SD.data_ptr(), update.momentum, update.weight_decay)
        if key not in self._backward:
            self._backward = {key: Replayed(lambda: self._backward_launches("sgd", update=update), self._device)}
        self._backward[key]()

    def backward_in_blocks(self, take: Callable[[int, torch.Tensor], None]) -> None:
        """Hand each block's gradient to `take`, which may overwrite it and change those rows."""
        rows = self._weight_SD.shape[0]
        grad = torch.empty_like(self._product)

        def hand_over(first: int) -> None:
            take(first, grad[: min(self._block, rows - first)])

        self._backward_launches("store", grad, grad_is_a_block=True, after=hand_over)

    def _forward_launches(self) -> None:
        tiles, batch = self._tiles, self._scaled_GD.shape[0]
        self._maximum.fill_(-torch.inf)
        self._total.zero_()
        for first in self._starts():
            self._normalise(first)
            ops.partial_logsumexp[(self._block // tiles.classes, triton.cdiv(batch, tiles.samples))](
                self._factors,
                self._scaled_GD,
                self._target_G,
                self._count,
                self._maximum,
                self._total,
                first,
                batch,
                *_numbers(self._warp),
                *self._tile_shape(),
                WARPED=self._warp is not None,
                PRECISION=self._precision,
                num_warps=tiles.warps,
                num_stages=tiles.stages,
            )
        largest_G = self._maximum.amax(0)
        shift_G = largest_G.masked_fill(largest_G.isneginf(), 0)  # exp2(-inf - 0) is 0, exp2(-inf + inf) is not
        total_G = (self._total * (self._maximum - shift_G).exp2()).sum(0)
        torch.add(total_G.log2(), shift_G, out=self._logsumexp2_G)

    def _backward_launches(
        self,
        end: str,
        grad: torch.Tensor | None = None,
        *,
        grad_is_a_block: bool = False,
        update: SgdUpdate | None = None,
        after: Callable[[int], None] | None = None,
    ) -> None:
        self.grad_features_GD.zero_()
        self._sort_targets()
        for first in self._starts():
            self._normalise(first)
            self._softmax_launch(first)
            self._products()
            ops.finish_rows[(self._block // self._tiles.rows,)](
                self._weight_SD,
                self._weight_SD if update is None else update.momentum_SD,
                self._weight_SD if grad is None else grad,
                self._weight_SD,
                self._count,
                self._inverse,
                self._product,
                self._sorted_targets,
                self._target_order,
                self._target_grads_GD,
                self._rate,
                first,
                first if grad_is_a_block else 0,
                0.0 if update is None else update.momentum,
                0.0 if update is None else update.weight_decay,
                D=self._factors.shape[1],
                BLOCK_R=self._tiles.rows,
                TARGETS=self._sorted_targets.shape[0],
                SAMPLED=False,
                UNIT=self._unit,
                END=end,
                num_warps=4,
            )
            if after is not None:
                after(first)

    def _starts(self) -> range:
        return range(0, self._weight_SD.shape[0], self._block)

    def _tile_shape(self) -> tuple[int, int, int, int]:
        return self._factors.shape[1], self._tiles.samples, self._tiles.classes, self._tiles.depth

    def _normalise(self, first: int) -> None:
        ops.normalise[(self._block // self._tiles.rows,)](
            self._weight_SD,
            self._weight_SD,
            self._count,
            self._factors,
            self._inverse,
            first,
            D=self._factors.shape[1],
            BLOCK_R=self._tiles.rows,
            SAMPLED=False,
            UNIT=self._unit,
            num_warps=4,
        )

    def _softmax_launch(self, first: int) -> None:
        tiles, warp, batch = self._tiles, self._warp, self._scaled_GD.shape[0]
        ops.softmax[(self._block // tiles.classes * triton.cdiv(batch, tiles.samples),)](
            self._factors,
            self._scaled_GD,
            self._target_G,
            self._count,
            self._logsumexp2_G,
            self._grad_G,
            self._softmax,
            first,
            batch,
            *_numbers(warp),
            *self._tile_shape(),
            GROUP=tiles.group,
            BLOCK=self._block,
            WARPED=warp is not None,
            DETACHED=warp is not None and warp.detached,
            PRECISION=self._precision,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )

    def _products(self) -> None:
        """The embedding gradient of the block, added; the row gradient, as it is before the projection."""
        if self._library:
            self.grad_features_GD += torch.mm(self._softmax, self._factors, out_dtype=torch.float32)
            self._product.copy_(torch.mm(self._softmax.t(), self._features_GD, out_dtype=torch.float32))
            return
        self._multiply(self._softmax, self._factors, self.grad_features_GD, accumulate=True)
        self._multiply(self._softmax.t(), self._features_GD, self._product, accumulate=False)

    def _multiply(self, a_MK: torch.Tensor, b_KN: torch.Tensor, out_MN: torch.Tensor, *, accumulate: bool) -> None:
        (m, k), n, side = a_MK.shape, b_KN.shape[1], self._tiles.product
        ops.product[(triton.cdiv(m, side), triton.cdiv(n, side))](
            a_MK,
            b_KN,
            out_MN,
            m,
            n,
            k,
            a_MK.stride(0),
            a_MK.stride(1),
            BLOCK_M=side,
            BLOCK_N=side,
            BLOCK_K=min(side, 32),
            ACCUMULATE=accumulate,
            PRECISION=self._precision,
        )

    def _sort_targets(self) -> None:
        padded = torch.full_like(self._sorted_targets, _NO_ROW)
        padded[: self._target_G.shape[0]] = self._target_G.masked_fill(self._target_G < 0, _NO_ROW)
        torch.sort(padded, stable=True, out=(self._sorted_targets, self._target_order))


class Replayed:
    """Launches on fixed buffers: run as they are at the first call, captured at the second, replayed from then on.

    On a CPU (Triton's interpreter) they run as they are at every call.
    """

    def __init__(self, launches: Callable[[], None], device: torch.device) -> None:
        self._launches, self._on_gpu = launches, device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._compiled = False

    def __call__(self) -> None:
        """Queue the launches on the current stream."""
        if not self._on_gpu or not self._compiled:  # a capture may not compile, nor let cuBLAS allocate
            self._launches()
            self._compiled = True
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # Other threads decode and save meanwhile: their calls are not this capture's.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._launches()
        self._graph.replay()


def _numbers(warp: DividedAngle | None) -> tuple[float, float]:
    return (1.0, 1.0) if warp is None else (warp.m, warp.scale * _LOG2_E)


def _padded(block: int, rows: int, tiles: Tiles) -> int:
    """A block no larger than the rows, in whole tiles."""
    return -(-min(block, rows) // tiles.classes) * tiles.classes


def _l2_bytes() -> int:
    return torch.cuda.get_device_properties().L2_cache_size if torch.cuda.is_available() else _L2_BYTES
