"""What passes over blocks of classes share, whatever they make of a block's logits: blocks, slices, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pipeline.head.kernels.kernel import Scoring, Sink
from pipeline.head.kernels.products import gradient_factor, gradient_product

# Numbers of a block that are worked on at a time: what fits a core's cache, or is worth a launch.
_SLICE_NUMBERS, _SLICE_NUMBERS_ON_DEVICES = 2**15, 2**20


def blocks(
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


def slices(products: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """A block's products [block, G] some classes at a time, live, each with its first class.

    What is made of a slice stays in the cache, and never is as large as a block.
    """
    block, batch = products.shape
    numbers = _SLICE_NUMBERS if products.device.type == "cpu" else _SLICE_NUMBERS_ON_DEVICES
    size = max(1, min(numbers // batch, block // 8))
    for number, part in enumerate(products.split(size)):
        yield number * size, part


def cosines(products: torch.Tensor, scale: float) -> torch.Tensor:
    """cos θ from the plain products, which are `scale` times that; within [-1, 1]."""
    return (products / scale).clamp_(-1, 1)


def without_target(values: torch.Tensor, target_G: torch.Tensor, fill: float) -> torch.Tensor:
    """`values` [block, G], in place, with `fill` at each sample's target class if that lies in the block."""
    inside = (target_G >= 0) & (target_G < values.shape[0])
    row = target_G.clamp(0, values.shape[0] - 1)[None]
    return values.scatter_(0, row, values.gather(0, row).masked_fill_(inside, fill))


def target_rows(weight_SD: torch.Tensor, target_G: torch.Tensor, rows_n: torch.Tensor | None) -> torch.Tensor:
    """Each sample's target row [G, D]; zeros if it is not here."""
    number_G = target_G.clamp(min=0)
    rows_GD = weight_SD[number_G if rows_n is None else rows_n[number_G]]
    return rows_GD.masked_fill((target_G < 0)[:, None], 0)


def gradients(
    features_GD: torch.Tensor,
    weight_SD: torch.Tensor,
    target_G: torch.Tensor,
    scoring: Scoring,
    sink: Sink | None,
    rows_n: torch.Tensor | None,
    grad_G: torch.Tensor,
    grad_target_rows_GD: torch.Tensor,
    weigh: Callable[[torch.Tensor, int], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of features [G, D] and rows [S, D] (None: the sink has taken them).

    Args:
        features_GD, weight_SD, target_G, scoring, sink, rows_n: as in `Kernel`.
        grad_G, grad_target_rows_GD: of the two results.
        weigh: from a block's rows, and the number of the first, to d result / d(row · features) [block, G].
    """
    dtype = scoring.dtype
    scaled_GD = gradient_factor(features_GD * grad_G[:, None], dtype)
    grad_features_GD = torch.zeros_like(features_GD)
    grad_weight_SD = torch.empty_like(weight_SD) if sink is None else None
    for start, rows, norms in blocks(weight_SD, scoring, rows_n):
        weights = gradient_factor(weigh(rows, start), dtype)
        grad_features_GD += gradient_product(weights.t(), gradient_factor(rows, dtype))
        grad_rows = gradient_product(weights, scaled_GD)
        del weights
        place = grad_rows if grad_weight_SD is None else grad_weight_SD[start : start + len(rows)]
        if norms is None:
            place.copy_(grad_rows)
        else:
            # d(w/‖w‖)/dw: the part along w does nothing
            grad_rows.addcmul_((grad_rows * rows).sum(1, keepdim=True), rows, value=-1)
            torch.div(grad_rows, norms, out=place)
        if sink is not None:
            _add_target(grad_rows, grad_target_rows_GD, target_G - start)
            sink.take(start, grad_rows)
        del grad_rows, place, rows
    if grad_weight_SD is not None:
        _add_target(grad_weight_SD, grad_target_rows_GD, target_G)
    return grad_features_GD.mul_(grad_G[:, None]), grad_weight_SD


def _add_target(grad_rows: torch.Tensor, grad_target_rows_GD: torch.Tensor, target_G: torch.Tensor) -> None:
    """Add the target rows' gradients that fall into this block; the rest add zeros to its first or last row."""
    inside = (target_G >= 0) & (target_G < grad_rows.shape[0])
    place = target_G.clamp(0, grad_rows.shape[0] - 1)
    grad_rows.index_add_(0, place, grad_target_rows_GD.masked_fill(~inside[:, None], 0))
