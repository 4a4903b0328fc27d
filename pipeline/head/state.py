"""The state of a margin in the head: what it is after the batch at hand, and after a step."""

from __future__ import annotations

import torch
from torch import nn

from cluster.ranks.collectives import Group, gather_rows
from pipeline.head.bias import LearnedBias
from pipeline.head.margins import Margin, Observed, State


class MarginState(nn.Module):
    """The tensors of a margin's state, the same on every rank: each sees all samples, in one order.

    A step reads them as the last good step left them, and `advance` replaces them from what the whole step was: all
    micro-batches, ranks and replicas. A step that is dropped changes nothing. Nothing here makes a host wait for a GPU.

    Args:
        initial: before the first step, by name.
        replicas: the ranks that hold the same rows, but see other samples; None if there are none.
        bias: what the margin learns besides; None: nothing.
    """

    def __init__(self, initial: State, replicas: Group = None, bias: LearnedBias | None = None) -> None:
        super().__init__()
        self._replicas, self.learned = replicas, bias
        for name, value in initial.items():
            self.register_buffer(name, value.clone())
        # Of each micro-batch of this step: target cosine, embedding norm, valid.
        self._seen: list[torch.Tensor] = []

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """By name, live; empty for most margins."""
        return self._observed | ({} if self.learned is None else self.learned.tensors)

    @property
    def observes(self) -> bool:
        """Whether it depends on what is seen: then `look` wants the target cosines."""
        return bool(self._observed)

    @property
    def _observed(self) -> dict[str, torch.Tensor]:
        return dict(self.named_buffers(recurse=False))

    @torch.no_grad()
    def begin(self, initial: State) -> None:
        """Set all to what it is before the first step."""
        for name, value in self._observed.items():
            value.copy_(initial[name])
        if self.learned is not None:
            self.learned.begin()
        self.forget()

    def look(
        self,
        margin: Margin,
        cosine_G: torch.Tensor | None,
        embedding_norm_G: torch.Tensor,
        valid_G: torch.Tensor,
    ) -> State:
        """Take a micro-batch in, and say what the state is after it and the last good step; the bias with a gradient.

        Where there are no gradients (an evaluation) nothing is taken in. If it observes: one all-gather [G, 3] between
        replicas.
        """
        state: dict[str, torch.Tensor] = {} if self.learned is None else {"bias": self.learned.leaf()}
        if cosine_G is None:
            return state
        columns = torch.stack([cosine_G, embedding_norm_G, valid_G.to(cosine_G.dtype)], dim=1)
        columns = gather_rows(columns, self._replicas)
        if torch.is_grad_enabled():
            self._seen.append(columns)
        return state | self._after(margin, columns)

    @torch.no_grad()
    def advance(self, margin: Margin, learning_rate: float, dropped: torch.Tensor | None) -> None:
        """Replace the state by what it is after this step, in place; not if `dropped`, a scalar, is 1."""
        if self.learned is not None:
            self.learned.update(learning_rate, dropped)
        if self._seen:
            state = self._after(margin, torch.cat(self._seen))
            for name, value in self._observed.items():  # the checkpoint holds these very tensors
                value.copy_(state[name] if dropped is None else torch.where(dropped > 0, value, state[name]))
        self.forget()

    def forget(self) -> None:
        """Drop what was seen in this step."""
        self._seen.clear()
        if self.learned is not None:
            self.learned.forget()

    def _after(self, margin: Margin, columns: torch.Tensor) -> dict[str, torch.Tensor]:
        before = self._observed
        cosine_G, embedding_norm_G, valid_G = columns.to(next(iter(before.values())).dtype).unbind(1)
        after = margin.next_state(before, Observed(cosine_G, embedding_norm_G, valid_G))
        labelled = valid_G.any()  # a mean over no samples would be 0, and stay in the state
        return {name: torch.where(labelled, after[name], value) for name, value in before.items()}
