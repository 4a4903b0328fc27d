"""The classifier split over ranks: gather embeddings, score own rows, one softmax across all of them.

Collectives of a step, in order, on the head's group: all-gather embeddings [B, D] and labels [B]; all-reduce max
[G]; all-reduce sum [3, G]. Backward: reduce-scatter embedding gradients [G, D]. Nothing of size S or C travels, but
where the classes are replicated (below): then the rows' gradients, block by block.

The gradient law. The loss is the mean over the group's batch, computed alike on every rank of it. A row's gradient is
complete on the rank that owns it and is never averaged within the group. An embedding's gradient is the sum over the
group's ranks of what their rows contribute (the reduce-scatter), hence complete too. DeepSpeed then *averages* the
backbone's gradient over all ranks, where the sum over the group is wanted: `pipeline.training.engine` multiplies by the
group's ranks, once, there and nowhere else.

Two dimensions. The group may be smaller than the world (a node, say): its ranks split the classes, and groups replicate
them. Each group then has the loss of its own part of the batch, and a row's gradient is averaged over its replicas.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from cluster.collectives import (
    Group,
    average_over_ranks_,
    gather_rows,
    max_over_ranks,
    num_ranks,
    rank_in,
    sum_over_ranks,
)
from cluster.topology import split_range
from pipeline.head.kernels.blocks import BLOCK, Sink, others_logsumexp
from pipeline.head.margins import Margin, cosine
from pipeline.head.rows import class_of, initial_rows, sampled_rows
from pipeline.optim import Optimizer
from pipeline.optim.rows import RowOptimizer


@dataclass(frozen=True)
class HeadOutput:
    """What a step's head computed, the same on every rank of the group.

    Attributes:
        loss: scalar, mean over the group's batch; an ignored sample counts as 0.
        own_cosine_G: cos θ to the own class, detached; 0 for ignored samples.
        norm_G: ‖x‖, detached.
        valid_G: which samples carry a label.
    """

    loss: torch.Tensor
    own_cosine_G: torch.Tensor
    norm_G: torch.Tensor
    valid_G: torch.Tensor


@dataclass(frozen=True)
class HeadOptions:
    """How the head computes; none of it changes what is computed, but for `sample_rate`.

    Attributes:
        dtype: of the products (float32 or bfloat16); rows, sums and the loss stay float32.
        block: classes whose logits are held at a time.
        fused_update: update a block of rows as soon as its gradient exists, in the backward pass: a class costs its row
            and its momentum, 8·D bytes instead of 12·D. Needs the whole step in one backward pass.
        sample_rate: the share of the other classes that take part in a step (Partial FC); 1: all, the exact softmax.
    """

    dtype: torch.dtype = torch.float32
    block: int = BLOCK
    fused_update: bool = False
    sample_rate: float = 1.0


class ShardedHead(nn.Module):
    """Rows ``split_range(C, N, r)`` of a classifier of C classes, their loss and their update.

    Args:
        num_classes: C; need not divide by the ranks, but every rank must own at least one class.
        embedding_dim: D.
        margin: how the own class's logit differs.
        group: the ranks that share the classes; None for this process alone.
        replicas: the ranks that hold the same rows; None where nobody does.
        seed: of the initial rows and of the sampling, which depend on (seed, class) and (seed, step, class) only.
        optimizer: of the rows; None where they are not updated.
        options: how it computes.

    Raises:
        ValueError: when there are fewer classes than ranks.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: Margin,
        group: Group = None,
        *,
        replicas: Group = None,
        seed: int = 0,
        optimizer: Optimizer | None = None,
        options: HeadOptions = HeadOptions(),
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        ranks = num_ranks(group)
        if num_classes < ranks:
            raise ValueError(f"num_classes: got {num_classes}, wanted at least one for each of {ranks} ranks")
        self.num_classes, self.margin, self.group, self.replicas = num_classes, margin, group, replicas
        self.seed, self.options = seed, options
        self.classes = split_range(num_classes, ranks, rank_in(group))
        self.weight_SD = nn.Parameter(initial_rows(self.classes, embedding_dim, seed).to(device))
        self.optimizer = None if optimizer is None else RowOptimizer(self.weight_SD, optimizer)
        # Row numbers of this step's classes and the leaf that holds a copy of their rows; None: all rows.
        self._active: tuple[torch.Tensor, torch.Tensor] | None = None
        # Whether what `weight_SD.grad` holds was used up. The buffer stays: a fresh one of gigabytes costs page faults.
        self._grad_is_used = True

    def forward(
        self,
        embeddings_BD: torch.Tensor,
        labels_B: torch.Tensor,
        anneal: float = 0.0,
        *,
        step: int = 0,
        learning_rate: float = 0.0,
    ) -> HeadOutput:
        """Loss of the group's batch from this rank's embeddings [B, D] and labels [B] (-1: ignored).

        `anneal` is A-Softmax's λ at this step; `step` decides which classes are sampled; `learning_rate` is what a
        fused update will use in the backward pass, which then changes the rows. Collectives: see the module.
        """
        x_GD = gather_rows(embeddings_BD.to(self.weight_SD.dtype), self.group)
        labels_G = gather_rows(labels_B, self.group)
        own_G = class_of(labels_G, self.classes)
        weight, own_G = self._step_rows(own_G, step)
        others_G, own_rows_GD = others_logsumexp(
            self.margin.features(x_GD),
            weight,
            own_G,
            normalise_rows=self.margin.normalises_rows,
            warp=self.margin.others,
            dtype=self.options.dtype,
            block=self.options.block,
            sink=self._sink(learning_rate),
        )
        own_logit_G, own_cosine_G, others_G = self._combine(x_GD, own_rows_GD, own_G, others_G, anneal)
        valid_G = labels_G >= 0
        # -log softmax of the own class; logsigmoid keeps its precision where the loss is tiny or huge.
        loss_G = -F.logsigmoid(own_logit_G - others_G)
        return HeadOutput(
            loss=loss_G.masked_fill(~valid_G, 0).mean(),
            own_cosine_G=own_cosine_G.detach(),
            norm_G=x_GD.detach().norm(dim=1),
            valid_G=valid_G,
        )

    @property
    def held_bytes(self) -> int:
        """Bytes of the rows, their slots and, once there was a backward pass, their gradient."""
        grad, slots = self.weight_SD.grad, self.slots.values()
        return self.weight_SD.nbytes + sum(slot.nbytes for slot in slots) + (0 if grad is None else grad.nbytes)

    @property
    def slots(self) -> dict[str, torch.Tensor]:
        """What the optimizer keeps of the rows, by name: [S, D] or [S], live."""
        return {} if self.optimizer is None else self.optimizer.slots

    @torch.no_grad()
    def update(self, learning_rate: float) -> None:
        """Apply the gradient of the step's backward passes to the rows and drop it; after a fused update, nothing.

        Where the classes are replicated: all-reduces of the gradient, a block at a time.
        """
        if self.options.fused_update:
            return
        leaf = self.weight_SD if self._active is None else self._active[1]
        assert leaf.grad is not None, "update without a backward pass"
        for start in range(0, leaf.shape[0], self.options.block):
            self._update_block(start, leaf.grad[start : start + self.options.block], learning_rate)
        self._active, self._grad_is_used = None, True

    def drop(self) -> None:
        """Let the gradient of the step's backward passes go, unapplied; what a fused update applied stays."""
        self._active, self._grad_is_used = None, True

    def _step_rows(self, own_G: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows that take part, and own row numbers among them."""
        if self.options.sample_rate >= 1:
            return self.weight_SD, own_G
        rows = sampled_rows(own_G, self.classes, self.options.sample_rate, self.seed, step)
        leaf = self.weight_SD.detach()[rows].requires_grad_()
        self._active = (rows, leaf)
        return leaf, torch.where(own_G >= 0, torch.searchsorted(rows, own_G), own_G)

    def _sink(self, learning_rate: float) -> Sink | None:
        """What becomes of a block of the gradient: an update, or a part of ``weight_SD.grad``; None: autograd's."""
        if self.options.fused_update:
            return lambda start, grad: self._update_block(start, grad, learning_rate)
        return self._accumulate if self._active is None else None

    def _accumulate(self, start: int, grad: torch.Tensor) -> None:
        """Put a block into ``weight_SD.grad``: over what was used up, or on top of earlier micro-batches."""
        if self.weight_SD.grad is None:
            self.weight_SD.grad = torch.empty_like(self.weight_SD)
        part = self.weight_SD.grad[start : start + grad.shape[0]]
        if self._grad_is_used:
            part.copy_(grad)
        else:
            part.add_(grad)
        if start + grad.shape[0] == self.weight_SD.shape[0]:  # the last block
            self._grad_is_used = False

    def _update_block(self, start: int, grad: torch.Tensor, learning_rate: float) -> None:
        """Average a block of the gradient over replicas and update its rows."""
        assert self.optimizer is not None, "an update of a head without an optimizer"
        average_over_ranks_(grad, self.replicas)
        rows = slice(start, start + grad.shape[0])
        self.optimizer.apply(rows if self._active is None else self._active[0][rows], grad, learning_rate)

    def _combine(
        self,
        x_GD: torch.Tensor,
        own_rows_GD: torch.Tensor,
        own_G: torch.Tensor,
        local_G: torch.Tensor,
        anneal: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Own logit, own cosine and log-sum-exp of the other classes, over all ranks' rows [G] each."""
        # With a single class there is no other: a floor far below any logit stands for log 0 without NaN gradients.
        floor = torch.finfo(local_G.dtype).min / 4
        local_G = local_G.clamp(min=floor)
        maximum_G = max_over_ranks(local_G, self.group)
        here_G = own_G >= 0
        # Rows of -1 are zeros, whose cosine has no gradient worth having: swap in x before, mask out after.
        own_rows_GD = torch.where(here_G[:, None], own_rows_GD, x_GD.detach())
        own_logit_G = self.margin.own_logit(x_GD, own_rows_GD, anneal).masked_fill(~here_G, 0)
        own_cosine_G = cosine(x_GD.detach(), own_rows_GD.detach()).masked_fill(~here_G, 0)
        summed = sum_over_ranks(torch.stack([own_logit_G, own_cosine_G, (local_G - maximum_G).exp()]), self.group)
        return summed[0], summed[1], summed[2].log() + maximum_G
