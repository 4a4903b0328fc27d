"""The state of a margin in the head: what it is after the batch at hand, and after a step."""

from __future__ import annotations

import torch
from torch import nn

from cluster.collectives import Group, gather_rows
from pipeline.head.margins import Margin, Observed, State


class MarginState(nn.Module):
    """The tensors of a margin's state, the same on every rank: each sees all samples, in one order.

    A step reads them as the last good step left them, and `advance` replaces them from what the whole step was: all
    micro-batches, ranks and replicas. A step that is dropped changes nothing. Nothing here makes a host wait for a GPU.

    Args:
        initial: before the first step, by name.
        replicas: the ranks that hold the same rows, but see other samples; None if there are none.
    """

    def __init__(self, initial: State, replicas: Group = None) -> None:
        super().__init__()
        self._replicas = replicas
        for name, value in initial.items():
            self.register_buffer(name, value.clone())
        # Of each micro-batch of this step: target cosine, embedding norm, valid.
        self._seen: list[torch.Tensor] = []

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """By name, live; empty for most margins."""
        return dict(self.named_buffers())

    def look(
        self, margin: Margin, cosine_G: torch.Tensor, embedding_norm_G: torch.Tensor, valid_G: torch.Tensor
    ) -> State:
        """Take a micro-batch in, and say what the state is after it and the last good step. One all-gather [G, 3]."""
        columns = torch.stack([cosine_G, embedding_norm_G, valid_G.to(cosine_G.dtype)], dim=1)
        self._seen.append(gather_rows(columns, self._replicas))
        return self._after(margin, self._seen[-1])

    @torch.no_grad()
    def advance(self, margin: Margin, dropped: torch.Tensor | None) -> None:
        """Replace the state by what it is after this step; not if `dropped`, a scalar, is 1. In place."""
        if not self._seen:
            return
        state = self._after(margin, torch.cat(self._seen))
        for name, value in self.tensors.items():  # the checkpoint holds these very tensors
            value.copy_(state[name] if dropped is None else torch.where(dropped > 0, value, state[name]))
        self.forget()

    def forget(self) -> None:
        """Drop what was seen in this step."""
        self._seen.clear()

    def _after(self, margin: Margin, columns: torch.Tensor) -> State:
        before = self.tensors
        cosine_G, embedding_norm_G, valid_G = columns.to(next(iter(before.values())).dtype).unbind(1)
        after = margin.next_state(before, Observed(cosine_G, embedding_norm_G, valid_G))
        labelled = valid_G.any()  # a mean over no samples would be 0, and stay in the state
        return {name: torch.where(labelled, after[name], value) for name, value in before.items()}
