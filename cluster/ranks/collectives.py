"""Collectives with their gradients: conjugate pairs side by side, the group explicit.

Inputs are never mutated, except by functions whose names end in ``_``.

A `Group` of None is this process alone: every function is then the identity (with a leading dimension kept), so
that code written for many ranks also runs, and is tested, without a process group.

The gradients assume that after the collective every rank computes the same scalar loss from the same values, and that
this scalar counts once, not once a rank.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from cluster.stopwatch import STEP

Group: TypeAlias = dist.ProcessGroup | None

# torch 2.13 renamed these two and warns of the old names.
_all_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_into = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Sent:
    """Bytes that this rank has sent, computed from shapes: what ring algorithms send, whatever the library does."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, size: float) -> None:
        """Count `size` bytes more."""
        self._bytes += int(size)

    def take(self) -> int:
        """Bytes since the last call."""
        size, self._bytes = self._bytes, 0
        return size


# One process trains one model: its collectives and its loop share this count, as they share `STEP`. What is not the
# head's is counted apart.
SENT = Sent()


def world() -> Group:
    """All ranks; None if there is but this process."""
    there = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if there else None


def num_ranks(group: Group) -> int:
    """Ranks in the group; 1 for None."""
    return 1 if group is None else dist.get_world_size(group)


def rank_in(group: Group) -> int:
    """This process's rank in the group; 0 for None."""
    return 0 if group is None else dist.get_rank(group)


class _GatherRows(torch.autograd.Function):
    """All-gather forward, in the type that comes; reduce-scatter (sum) backward, in the type that was asked for."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, group: dist.ProcessGroup, dtype: torch.dtype) -> torch.Tensor:
        ctx.group, ctx.dtype = group, local.dtype
        return _all_gather(local, group).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return reduce_scatter_rows(grad, ctx.group).to(ctx.dtype), None, None


class _SumOverRanks(torch.autograd.Function):
    """All-reduce (sum) forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, group: dist.ProcessGroup, sent: Sent) -> torch.Tensor:  # noqa: ARG004
        return _all_reduce(local, group, dist.ReduceOp.SUM, sent)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ARG004
        return grad, None, None


def gather_rows(local: torch.Tensor, group: Group, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Rows of every rank in rank order, as `dtype` (None: as they are): [B, ...] -> [N·B, ...]; B is the same on all.

    One all-gather, of the rows as they are: bfloat16 ones, say, become float32 afterwards, which changes no number.
    Backward: one reduce-scatter in `dtype`, the sum over ranks of what each contributes to these rows.
    """
    dtype = dtype or local.dtype
    return local.to(dtype) if group is None else _GatherRows.apply(local, group, dtype)


def reduce_scatter_rows(rows: torch.Tensor, group: Group) -> torch.Tensor:
    """The sum over ranks of this rank's share of rows: [N·B, ...] -> [B, ...]. One reduce-scatter, no gradient."""
    if group is None:
        return rows
    output = rows.new_empty(rows.shape[0] // num_ranks(group), *rows.shape[1:])
    with STEP.part("communication"):
        _reduce_scatter_into(output, rows.contiguous(), group=group)
    SENT.add((num_ranks(group) - 1) * output.nbytes)
    return output


def sum_over_ranks(local: torch.Tensor, group: Group, sent: Sent = SENT) -> torch.Tensor:
    """Elementwise sum over ranks, the same on every rank. One all-reduce, counted by `sent`. Backward: identity."""
    return local if group is None else _SumOverRanks.apply(local, group, sent)


def max_over_ranks(local: torch.Tensor, group: Group) -> torch.Tensor:
    """Elementwise maximum over ranks, the same on every rank. One all-reduce, no gradient."""
    return local.detach() if group is None else _all_reduce(local.detach(), group, dist.ReduceOp.MAX)


def average_over_ranks_(values: torch.Tensor, group: Group) -> None:
    """Replace `values` by their mean over ranks: the only function here that mutates its argument. One all-reduce."""
    if group is None:
        return
    with STEP.part("communication"):
        dist.all_reduce(values, group=group)
    SENT.add(_all_reduce_bytes(values, group))
    values.div_(num_ranks(group))


def any_rank(flag: bool, group: Group, device: torch.device) -> bool:
    """Whether `flag` holds on at least one rank; every rank gets the same answer. One all-reduce of one number."""
    return bool(max_over_ranks(torch.tensor([float(flag)], device=device), group).item())


def gather_objects(value: Any, group: Group) -> list[Any]:
    """One small picklable value of every rank, in rank order, on every rank."""
    if group is None:
        return [value]
    values: list[Any] = [None] * num_ranks(group)
    dist.all_gather_object(values, value, group=group)
    return values


def barrier(group: Group) -> None:
    """Wait until every rank of the group has called this."""
    if group is not None:
        dist.barrier(group)


def _all_gather(local: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    output = local.new_empty(num_ranks(group) * local.shape[0], *local.shape[1:])
    with STEP.part("communication"):
        _all_gather_into(output, local.contiguous(), group=group)
    SENT.add((num_ranks(group) - 1) * local.nbytes)
    return output


def _all_reduce(local: torch.Tensor, group: dist.ProcessGroup, op: Any, sent: Sent = SENT) -> torch.Tensor:
    result = local.clone(memory_format=torch.contiguous_format)
    with STEP.part("communication"):
        dist.all_reduce(result, op=op, group=group)
    sent.add(_all_reduce_bytes(result, group))
    return result


def _all_reduce_bytes(values: torch.Tensor, group: dist.ProcessGroup) -> float:
    """Bytes that a ring sends: a reduce-scatter and an all-gather, each of (N-1)/N of the values."""
    ranks = num_ranks(group)
    return 2 * (ranks - 1) * values.nbytes / ranks
