"""The backbone's gradient, averaged over ranks while the backward pass still makes the rest of it.

Gradients appear last parameter first. Each bucket of them is sent as soon as it is full, and before the update only
what has not arrived is waited for. torch's DistributedDataParallel does the same, but makes its buckets anew after the
first step of a process; how a ring rounds a sum depends on where a number lies in its bucket, and a resumed run would
differ from an uninterrupted one. Here the buckets depend on the parameters alone.

A network that is compiled into one graph has all its gradients at its end, and hides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from cluster.ranks.collectives import Group, num_ranks
from cluster.stopwatch import STEP

# Bytes of a bucket in fp32: an eighth of what is still to come, within these. Large ones cost little latency; the last,
# which no computing hides, must be short.
_LEAST_BYTES, _MOST_BYTES = 1 << 20, 16 << 20


class GradientExchange:
    """Averages gradients over ranks, bucket by bucket, from within the backward pass.

    After `finish` every parameter's ``.grad`` is the mean, a view into its bucket, of the parameter's own layout.

    Args:
        parameters: those that are trained, in the order of the forward pass; on their device, in their final layout.
        group: the ranks to average over.
        dtype: of what is sent. With bfloat16 each rank's gradient is rounded to 8 bits, and the sum as the library
            rounds it; half of the bytes.
        is_last: whether the backward pass in progress is the last before an update: only its gradients are sent.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        group: Group,
        dtype: torch.dtype,
        is_last: Callable[[], bool],
    ) -> None:
        self._group, self._dtype, self._is_last = group, dtype, is_last
        self._buckets = [_Bucket(tuple(bucket)) for bucket in in_buckets(parameters)]
        self._sent: deque[_Sent] = deque()
        self._next = 0  # bucket to be sent
        self._expect_all()
        for number, bucket in enumerate(self._buckets):
            for p in bucket.parameters:
                p.register_post_accumulate_grad_hook(partial(self._made, number))

    def finish(self) -> None:
        """Wait for what is still on its way, and set the gradients to their means; nothing before the last pass."""
        if not self._is_last():
            return
        while self._next < len(self._buckets):  # parameters that this pass did not use have no gradient
            self._send_next()
        for bucket in self._buckets:
            sent = self._sent.popleft()
            with STEP.part("communication"):
                sent.work.wait()
            bucket.set_gradients(sent.flat.float().mul_(1 / num_ranks(self._group)))
        self._expect_all()

    def _expect_all(self) -> None:
        self._next = 0
        self._missing = [len(bucket.parameters) for bucket in self._buckets]

    def _made(self, number: int, _: torch.Tensor) -> None:
        """A gradient of a bucket is complete; send the buckets that are, in their order, the same on every rank."""
        if not self._is_last():
            return
        self._missing[number] -= 1
        while self._next < len(self._buckets) and not self._missing[self._next]:
            self._send_next()

    def _send_next(self) -> None:
        flat = self._buckets[self._next].take_gradients(self._dtype)
        self._sent.append(_Sent(flat, dist.all_reduce(flat, group=self._group, async_op=True)))
        self._next += 1


def in_buckets(parameters: Sequence[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Runs of parameters, from the last to the first, each closed by the parameter with which it has its size."""
    buckets: list[list[torch.nn.Parameter]] = []
    left, missing = sum(p.nbytes for p in parameters), 0
    for p in reversed(parameters):
        if missing <= 0:
            buckets.append([])
            missing = min(max(left // 8, _LEAST_BYTES), _MOST_BYTES)
        buckets[-1].append(p)
        left, missing = left - p.nbytes, missing - p.nbytes
    return buckets


@dataclass(frozen=True)
class _Sent:
    """A bucket on its way: the tensor that becomes the sum, and what to wait for."""

    flat: torch.Tensor
    work: Any


class _Bucket:
    """Parameters whose gradients travel together.

    On a GPU a bucket's memory is free for the next forward pass. On a CPU it is kept: the system takes back what is
    freed, and to get it again, page by page, holds the backward pass up for as long as several copies.
    """

    def __init__(self, parameters: tuple[torch.nn.Parameter, ...]) -> None:
        self.parameters = parameters
        self._kept: torch.Tensor | None = None

    def take_gradients(self, dtype: torch.dtype) -> torch.Tensor:
        """The gradients in one flat tensor, which replaces them: each is freed. Zeros where there is none."""
        device = self.parameters[0].device
        flat = self._kept
        if flat is None:
            flat = torch.empty(sum(p.numel() for p in self.parameters), dtype=dtype, device=device)
        if device.type == "cpu":
            self._kept = flat
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        torch._foreach_copy_(self._views(flat), gradients)
        for p in self.parameters:
            p.grad = None
        return flat

    def set_gradients(self, flat: torch.Tensor) -> None:
        """The reverse: each gradient a view into the flat tensor."""
        for p, view in zip(self.parameters, self._views(flat), strict=True):
            p.grad = view

    def _views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Parts of the flat tensor in the shapes and layouts of the parameters."""
        parts = flat.split([p.numel() for p in self.parameters])
        return [part.as_strided(p.shape, p.stride()) for part, p in zip(parts, self.parameters, strict=True)]
