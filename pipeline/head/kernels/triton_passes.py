"""The passes of the Triton kernel over the blocks: their buffers, their launches, and the CUDA graph of these.

Small blocks mean many launches, which Python pays with 20 to 50 µs each; a graph replays them at 1 to 2 µs. So the
first call of a pass runs as it is (and compiles), the second is captured, and the host time of all others does not
depend on C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from pipeline.head.kernels.kernel import FusedUpdate, RowGradient, Scoring
from pipeline.head.kernels.triton_tiles import Tiles, ceil_div, padded_block, padded_width
from pipeline.head.margins.sphereface_r import DividedAngle
from pipeline.optim.sgd import SGD

if TYPE_CHECKING:
    from types import ModuleType

_LOG2_E = 1.4426950408889634
_NO_ROW = 2**31 - 1  # sorts behind every row

# From launches on fixed buffers to what queues them again.
Capture: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]


@dataclass(frozen=True)
class SgdUpdate:
    """SGD with momentum, as `finish_rows` does it: the rows' momentum [S, D], μ, weight decay, and this step's rate."""

    momentum_SD: torch.Tensor
    momentum: float
    weight_decay: float
    learning_rate: float

    @classmethod
    def of(cls, update: FusedUpdate) -> SgdUpdate | None:
        """The numbers of an update by SGD; None if it is by another optimizer, or does more than SGD."""
        sgd = update.rows.optimizer
        if type(sgd) is not SGD or sgd.nesterov or update.rows.unit:
            return None
        return cls(update.rows.slots["momentum"], sgd.momentum, sgd.weight_decay, update.learning_rate)


class Passes:
    """Buffers of fixed addresses for one set of shapes, and the launches that read and write them."""

    def __init__(
        self,
        features_GD: torch.Tensor,
        weight_SD: torch.Tensor,
        scoring: Scoring,
        sampled: bool,
        tiles: Tiles,
        capture: Capture | None,
    ) -> None:
        (batch, dim), rows = features_GD.shape, weight_SD.shape[0]
        device, dtype = features_GD.device, scoring.dtype
        assert scoring.warp is None or isinstance(scoring.warp, DividedAngle)
        self._weight_SD, self._warp, self._unit = weight_SD.detach(), scoring.warp, scoring.normalise_rows
        self._tiles, self._capture, self._sampled = tiles, capture, sampled
        self._block, self._width = padded_block(scoring.block, rows, tiles), padded_width(dim, tiles)
        # cuBLAS for factors that tensor cores take as they are; the interpreter's tensors lie on the CPU.
        self._library = device.type == "cuda" and dtype != torch.float32
        self._precision = "tf32x3" if dtype == torch.float32 else "tf32"
        self._ops = _ops()

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._number = rows  # of rows that take part
        self._count = torch.tensor(rows, dtype=torch.int32, device=device)
        self._rows = zeros(rows if sampled else 1, dtype=torch.int32)
        # Columns behind D stay zeros.
        self._input_GD = zeros(batch, dim)
        self._features_GP, self._scaled_GP = (zeros(batch, self._width, dtype=dtype) for _ in range(2))
        self._grad_features_GP, self._target_grads_GD = zeros(batch, self._width), zeros(batch, dim)
        self._target_G, self._logsumexp2_G, self._grad_G = zeros(batch, dtype=torch.int32), zeros(batch), zeros(batch)
        self._target_rows_GD = zeros(batch, dim)
        # Padded to a power of two beyond G: the binary search always ends on a number that is no row's.
        self._sorted_targets = zeros(1 << batch.bit_length(), dtype=torch.int32)
        self._target_order = torch.zeros_like(self._sorted_targets, dtype=torch.int64)
        self._factors, self._inverse = zeros(self._block, self._width, dtype=dtype), zeros(self._block)
        self._softmax = zeros(batch, self._block, dtype=dtype)
        self._maximum, self._total = (zeros(self._block // tiles.classes, batch) for _ in range(2))
        self._rate = zeros(1)
        # Of each sequence of launches, once it has run: its graph, if there is one yet.
        self._graphs: dict[tuple[object, ...], Callable[[], None] | None] = {}

    def load(self, features_GD: torch.Tensor, target_G: torch.Tensor, rows_n: torch.Tensor | None) -> None:
        """Copy in what both passes read."""
        self._input_GD.copy_(features_GD)
        self._target_G.copy_(target_G)
        if rows_n is not None:
            self._number = len(rows_n)
            self._rows[: self._number].copy_(rows_n)
            self._count.fill_(self._number)

    def load_gradients(self, logsumexp2_G: torch.Tensor, grad_G: torch.Tensor, target_grads_GD: torch.Tensor) -> None:
        """Copy in what a backward pass reads besides."""
        self._logsumexp2_G.copy_(logsumexp2_G)
        self._grad_G.copy_(grad_G)
        self._target_grads_GD.copy_(target_grads_GD)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-sum-exp [G] over the non-target classes in units of log2(e), and the target rows [G, D]."""
        self._replay(("forward",), self._forward_launches)
        return self._logsumexp2_G.clone(), self._target_rows_GD.clone()

    def grad_features(self) -> torch.Tensor:
        """Of the last backward pass [G, D]."""
        return self._grad_features_GP[:, : self._input_GD.shape[1]].clone()

    def backward_into(self, grad_SD: torch.Tensor) -> None:
        """The whole gradient of the rows. (Its address is new at every call: this is not captured.)"""
        self._backward_launches("store", grad_SD)

    def backward_into_sum(self, gradient: RowGradient) -> None:
        """Store the gradient where it lies, or add to what lies there."""
        end, memory = "add" if gradient.holds else "store", gradient.memory()
        self._replay((end, memory.data_ptr()), lambda: self._backward_launches(end, memory))
        gradient.taken()

    def backward_with_update(self, update: SgdUpdate) -> None:
        """Update rows and momentum as soon as a block's gradient exists."""
        self._rate.fill_(update.learning_rate)
        key = (update.momentum_SD.data_ptr(), update.momentum, update.weight_decay)
        self._replay(key, lambda: self._backward_launches("sgd", update=update))

    def backward_in_blocks(self, take: Callable[[int, torch.Tensor], None]) -> None:
        """Hand each block's gradient to `take`, which may overwrite it and change those rows."""
        self._backward_launches("store", take=take)

    def _replay(self, key: tuple[object, ...], launches: Callable[[], None]) -> None:
        """Queue launches: as they are at the first call, captured at the second, replayed from then on."""
        key = (*key, len(self._starts()))  # sampling: not every step has as many blocks
        if self._capture is None or key not in self._graphs:
            launches()  # what must not happen in a capture happens now: Triton compiles, cuBLAS takes its workspace
            self._graphs[key] = None
            return
        replay = self._graphs[key]
        if replay is None:
            replay = self._graphs[key] = self._capture(launches)
        replay()

    def _forward_launches(self) -> None:
        tiles, batch = self._tiles, self._input_GD.shape[0]
        self._prepare_features()
        self._maximum.fill_(-torch.inf)
        self._total.zero_()
        for first in self._starts():
            self._normalise(first)
            self._ops.partial_logsumexp[(self._block // tiles.classes, ceil_div(batch, tiles.samples))](
                self._factors,
                self._scaled_GP,
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
        number_G = self._target_G.clamp(min=0)
        rows_GD = self._weight_SD[self._rows[number_G] if self._sampled else number_G]
        self._target_rows_GD.copy_(rows_GD.masked_fill((self._target_G < 0)[:, None], 0))

    def _backward_launches(
        self,
        end: str,
        grad: torch.Tensor | None = None,
        *,
        update: SgdUpdate | None = None,
        take: Callable[[int, torch.Tensor], None] | None = None,
    ) -> None:
        """What becomes of the gradient: an `update`, or into `grad` ("store", "add"), or to `take` block by block."""
        dim, rows = self._weight_SD.shape[1], self._tiles.rows(self._width)
        self._prepare_features()
        self._grad_features_GP.zero_()
        self._sort_targets()
        for first in self._starts():
            self._normalise(first)
            self._softmax_launch(first)
            product = self._products()
            self._ops.finish_rows[(self._block // rows,)](
                self._weight_SD,
                self._weight_SD if update is None else update.momentum_SD,
                product if grad is None else grad,
                self._rows,
                self._count,
                self._inverse,
                product,
                self._sorted_targets,
                self._target_order,
                self._target_grads_GD,
                self._rate,
                first,
                first if grad is None else 0,
                0.0 if update is None else update.momentum,
                0.0 if update is None else update.weight_decay,
                D=dim,
                P=self._width,
                GRAD_WIDTH=self._width if grad is None else dim,
                BLOCK_R=rows,
                TARGETS=self._sorted_targets.shape[0],
                SAMPLED=self._sampled,
                UNIT=self._unit,
                END=end,
                num_warps=4,
            )
            if take is not None:
                take(first, product[: self._number - first, :dim].contiguous())
            del product  # or the next block's stands beside it

    def _starts(self) -> range:
        return range(0, self._number, self._block)

    def _tile_shape(self) -> tuple[int, int, int, int]:
        return self._width, self._tiles.samples, self._tiles.classes, self._tiles.depth

    def _prepare_features(self) -> None:
        """Factors of the logits, whose unit is log2(e), and of the rows' gradient."""
        dim = self._input_GD.shape[1]
        self._features_GP[:, :dim].copy_(self._input_GD)
        self._scaled_GP[:, :dim].copy_(self._input_GD * _LOG2_E)

    def _normalise(self, first: int) -> None:
        rows = self._tiles.rows(self._width)
        self._ops.normalise[(self._block // rows,)](
            self._weight_SD,
            self._rows,
            self._count,
            self._factors,
            self._inverse,
            first,
            D=self._weight_SD.shape[1],
            P=self._width,
            BLOCK_R=rows,
            SAMPLED=self._sampled,
            UNIT=self._unit,
            num_warps=4,
        )

    def _softmax_launch(self, first: int) -> None:
        tiles, warp, batch = self._tiles, self._warp, self._input_GD.shape[0]
        self._ops.softmax[(self._block // tiles.classes * ceil_div(batch, tiles.samples),)](
            self._factors,
            self._scaled_GP,
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

    def _products(self) -> torch.Tensor:
        """The row gradient of the block [block, P], as it is before the projection; the embedding gradient is added."""
        if self._library:
            self._grad_features_GP += torch.mm(self._softmax, self._factors, out_dtype=torch.float32)
            return torch.mm(self._softmax.t(), self._features_GP, out_dtype=torch.float32)
        product = self._inverse.new_empty(self._block, self._width)
        self._multiply(self._softmax, self._factors, self._grad_features_GP, accumulate=True)
        self._multiply(self._softmax.t(), self._features_GP, product, accumulate=False)
        return product

    def _multiply(self, a_MK: torch.Tensor, b_KN: torch.Tensor, out_MN: torch.Tensor, *, accumulate: bool) -> None:
        (m, k), n, side = a_MK.shape, b_KN.shape[1], self._tiles.product
        self._ops.product[(ceil_div(m, side), ceil_div(n, side))](
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


def cuda_graphs() -> Capture:
    """Captures CUDA graphs that share their temporary memory, since they run one after another."""
    pool = torch.cuda.graph_pool_handle()

    def capture(launches: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads decode and save meanwhile: their calls are not this capture's.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            launches()
        return graph.replay

    return capture


def _ops() -> ModuleType:
    """Imported where it computes: a plan for a GPU needs no Triton."""
    from pipeline.head.kernels import triton_ops  # noqa: PLC0415

    return triton_ops


def _numbers(warp: DividedAngle | None) -> tuple[float, float, float]:
    """1/m, the scale of logits in units of log2(e), and its inverse."""
    return (1.0, 1.0, 1.0) if warp is None else (1 / warp.m, warp.scale * _LOG2_E, 1 / (warp.scale * _LOG2_E))
