"""The classifier split over ranks: gather embeddings, score this rank's rows, one softmax across all of them.

Collectives of a step, in order, on the head's group: all-gather embeddings [B, D] and labels [B]; all-reduce max
[G] (not of binary classifications); all-reduce sum [3, G], or [4, G] if the margin has a penalty. Backward:
reduce-scatter embedding gradients [G, D]. Nothing of size S or C travels, unless the classes are replicated (below):
then the rows' gradients, block by block. A margin that observes wants the target cosines before anything is scored: an
all-reduce sum [G] comes first, and an all-gather [G, 3] between replicas. One that draws wants the samples' numbers: an
all-gather [B]. One that learns a bias reduces its gradient at the end.

The gradient law. The loss is the mean over the samples of the group's batch that have a label, computed alike on every
rank of it. A row's gradient is complete on the rank that owns it and is never averaged within the group. An embedding's
gradient is the sum over the group's ranks of what their rows contribute (the reduce-scatter), hence complete too.
The trainer around then averages the backbone's gradient over all ranks, or sums it, but the sum over the group is
wanted: one factor (`pipeline.head.law`) makes up for it, here and nowhere else.

Two dimensions. The group may be smaller than the world (a node, say): its ranks split the classes, and groups replicate
them. Each group then has the loss of its own part of the batch, and a row's gradient is averaged over its replicas.

State of a margin: see `pipeline.head.state`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from cluster.ranks.collectives import (
    Group,
    average_over_ranks_,
    gather_rows,
    num_ranks,
    rank_in,
    sum_over_ranks,
    world,
)
from cluster.ranks.topology import split_range
from pipeline.head.bias import LearnedBias
from pipeline.head.combine import binary_losses, softmax_losses
from pipeline.head.draws import normal
from pipeline.head.kernels import FusedUpdate, Kernel, RowGradient, Scoring, Sink, choose
from pipeline.head.kernels.softplus import nontarget_softplus
from pipeline.head.law import BackboneGradient, factor_of, scale_gradient
from pipeline.head.margins import Margin, State, Target, Warp
from pipeline.head.margins.angular import cosine
from pipeline.head.margins.binary import BinaryMargin
from pipeline.head.module import OwnRows
from pipeline.head.options import HeadOptions, HeadOutput
from pipeline.head.rows import check_labels, class_of, draw_rows_, sampled_rows
from pipeline.head.state import MarginState
from pipeline.head.turns import Turns, needs_own_optimizer
from pipeline.optim import Optimizer
from pipeline.optim.rows import Rows

# Sets what margins draw apart from what sampling draws, which hashes (seed, step, class).
_OF_MARGINS = 1


class ShardedHead(OwnRows):
    """Rows ``split_range(C, N, r)`` of a classifier of C classes, their loss and their update.

    Args:
        num_classes: C; need not divide by the ranks, but every rank must own at least one class.
        embedding_dim: D.
        margin: how the target class's logit differs. It may be replaced by one of the same name between steps.
        group: the ranks that share the classes; "world": all that there are; None: this process alone.
        replicas: the ranks that hold the same rows; None if there are none.
        seed: of the initial rows and of the sampling, which depend on (seed, class) and (seed, step, class) only.
        optimizer: of the rows; None: one of torch's to which ``weight_SD`` was given, if any.
        options: how it computes.
        backbone_gradient: what the trainer does with the backbone's gradient over all ranks.
        device: where rows are made; on "meta" they have no memory until ``to_empty`` and `reset_parameters`.

    Raises:
        ValueError: when there are fewer classes than ranks, and for a fused update without an optimizer.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: Margin,
        group: Group | Literal["world"] = "world",
        *,
        replicas: Group = None,
        seed: int = 0,
        optimizer: Optimizer | None = None,
        options: HeadOptions = HeadOptions(),
        backbone_gradient: BackboneGradient = "averaged",
        device: torch.device | str | None = None,
    ) -> None:
        shared = world() if isinstance(group, str) else group
        ranks = num_ranks(shared)
        if num_classes < ranks:
            raise ValueError(f"num_classes: got {num_classes}, wanted at least one for each of {ranks} ranks")
        if options.fused_update and optimizer is None:
            raise ValueError("fused_update: got true without an optimizer, wanted one")
        classes = split_range(num_classes, ranks, rank_in(shared))
        weight_SD = torch.empty(len(classes), embedding_dim, device=device)
        super().__init__(Rows(weight_SD, optimizer, options.unit_rows), classes, num_classes)
        self.margin, self.group, self.replicas, self.seed, self.options = margin, shared, replicas, seed, options
        self._alone_for_now = isinstance(group, str) and shared is None
        self._factor = factor_of(backbone_gradient, shared, replicas)
        self.sample_rate = options.sample_rate  # like the margin it may change between steps
        bias = None
        if isinstance(margin, BinaryMargin):
            initial = margin.initial_bias(num_classes * options.sample_rate)
            bias = LearnedBias(initial, optimizer, shared, replicas)
        self.margin_state = MarginState(margin.initial_state(), replicas, bias).to(device)
        # Row numbers [n] of this step's classes; None: all rows.
        self._rows_n: torch.Tensor | None = None
        self._block = self._global_batch = 0  # classes at a time and samples of a step, as of the last forward pass
        self._turns = Turns(self.rows, options.accumulation, needs_own_optimizer(margin, options, replicas))
        self.moved()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make rows, their slots and the margin's state what they are before the first step."""
        if not self.weight_SD.is_meta:
            draw_rows_(self.weight_SD, self.classes, self.seed)
        self.rows.begin()
        self.margin_state.begin(self.margin.initial_state())
        self.step = 0

    def moved(self) -> None:
        """See `OwnRows`."""
        self._kernel: Kernel | None = None
        self._gradient = RowGradient(self.rows)

    def shared(self) -> Iterable[object]:
        """See `OwnRows`; a kernel holds what was made for these rows."""
        return self.group, self.replicas, self.options, self._kernel

    def forward(
        self,
        embeddings_BD: torch.Tensor,
        labels_B: torch.Tensor,
        lambda_: float | None = None,
        *,
        step: int | None = None,
        learning_rate: float | None = None,
        samples_B: torch.Tensor | None = None,
    ) -> HeadOutput:
        """Loss of the group's batch from this rank's embeddings [B, D] and labels [B] (-1: ignored).

        Args:
            embeddings_BD: as many on every rank.
            labels_B: numbers of classes.
            lambda_: the margin's λ; None: what the margin says of `step`, if it has one.
            step: decides λ, which classes are sampled, and what a margin draws; None: `update`s so far.
            learning_rate: what a fused update uses in the backward pass, which then changes the rows; None: what the
                optimizer says of `step`.
            samples_B: the samples' numbers in the set, which decide what a margin draws for each; None: their places in
                the group's batch.

        Raises:
            ValueError: on every rank, for a label that is no class's; on a GPU torch says so of a later call, since the
                host does not wait for it here.
            RuntimeError: for a step that the one before has not ended, and for a head that was made before its ranks
                were joined.

        Collectives: see the module.
        """
        step = self._begin(step, lambda_)
        ranks = num_ranks(self.group) * num_ranks(self.replicas)
        self._global_batch = len(embeddings_BD) * ranks * self.options.accumulation
        if lambda_ is None:
            lambda_ = self.margin.lambda_at(step)
        if learning_rate is None and self.options.fused_update and self.rows.optimizer is not None:
            learning_rate = self.rows.optimizer.learning_rate_at(step, self._global_batch)
        # Products are in the type that the options say, whatever the trainer around has them cast to.
        with torch.autocast(self.weight_SD.device.type, enabled=False):
            embeddings_BD = scale_gradient(embeddings_BD, self._factor)
            return self._loss(embeddings_BD, labels_B, lambda_, step, learning_rate or 0.0, samples_B)

    def _begin(self, step: int | None, lambda_: float | None) -> int:
        """Refuse what would go wrong without a word; the number of this step."""
        if self._alone_for_now and world() is not None:
            raise RuntimeError(
                "group: got a head that was made before the process group, which has all classes on every rank; wanted "
                "it made after (in Lightning: in configure_model)"
            )
        if torch.is_grad_enabled():
            self._turns.begin()
            anneals = lambda_ is None and self.margin.lambda_floor is not None
            if step is None and self.rows.optimizer is None and (anneals or self.margin.draws):
                raise ValueError("step: got None, wanted its number: only a head with an optimizer counts its updates")
        return self.step if step is None else step

    def _loss(
        self,
        embeddings_BD: torch.Tensor,
        labels_B: torch.Tensor,
        lambda_: float | None,
        step: int,
        learning_rate: float,
        samples_B: torch.Tensor | None,
    ) -> HeadOutput:
        # Embeddings travel, not rows: [G, D] is small beside [S, D]. After the gather each rank scores the whole batch
        # against its own rows, and has the target rows of a part of it; only then can a margin be applied.
        x_GD = gather_rows(embeddings_BD, self.group, self.weight_SD.dtype)
        labels_G = gather_rows(labels_B, self.group)
        check_labels(labels_G, self.num_classes)
        valid_G, target_G, embedding_norm_G = labels_G >= 0, class_of(labels_G, self.classes), x_GD.detach().norm(dim=1)
        state, warp = self._look(x_GD, target_G, embedding_norm_G, valid_G)
        rows_GD, here_G, others_G = self._score(x_GD, target_G, warp, state, step, learning_rate)
        target = Target(x_GD, rows_GD, self._drawn(samples_B, len(x_GD), step) if self.margin.draws else 0.0)
        # Before the sum over ranks and not after: a target row's gradient then stays on the rank that owns it.
        of_targets = [self.margin.target_logit(target, lambda_, state), target.cosine_G.detach()]
        if (penalty_G := self.margin.penalty(target)) is not None:
            of_targets.append(penalty_G)
        if isinstance(self.margin, BinaryMargin):
            losses = binary_losses(others_G, of_targets, here_G, self.group, self.margin.weights)
        else:
            losses = softmax_losses(others_G, of_targets, here_G, self.group)
        loss_G, target_cosine_G = losses
        # Exactly 1 if all samples are valid: the loss is then its mean to the bit.
        share = len(valid_G) / valid_G.sum().clamp(min=1).to(loss_G.dtype)
        loss = loss_G.masked_fill(~valid_G, 0).mean() * share
        return HeadOutput(loss, target_cosine_G.detach(), embedding_norm_G, valid_G)

    @property
    def held_bytes(self) -> int:
        """Bytes of the rows, their slots and, once there was a backward pass, their gradient."""
        return sum(tensor.nbytes for tensor in (self.weight_SD, *self.slots.values())) + self._gradient.held_bytes

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The margin's state by name, live, a learned bias included; empty for most margins."""
        return self.margin_state.tensors

    @property
    def row_gradient(self) -> torch.Tensor | None:
        """This step's gradient of the rows that take part; None before the backward pass, or if that applied it."""
        return self._gradient.memory() if self._gradient.holds else None

    @torch.no_grad()
    def update(self, learning_rate: float | None = None, dropped: torch.Tensor | None = None) -> None:
        """End a good step: apply its gradient to the rows (unless a fused update has) and renew the margin's state.

        Without a `learning_rate` it is what the optimizer says of this step. If `dropped`, a float32 scalar on the
        rows' device, is 1, neither is changed (`Optimizer.update_rows_unless`). If the classes are replicated:
        all-reduces of the gradient, a block at a time.

        Raises:
            RuntimeError: without an optimizer, or a backward pass before.
        """
        if self.rows.optimizer is None:
            raise RuntimeError("update: got a head without an optimizer, wanted one, or no update but your optimizer's")
        if learning_rate is None:
            learning_rate = self.rows.optimizer.learning_rate_at(self.step, self._global_batch)
        if not self.options.fused_update:
            if not self._gradient.holds:
                raise RuntimeError("update: got no gradient of the rows, wanted a backward pass before")
            grad = self._gradient.memory()
            # In the blocks of a fused update: how an all-reduce rounds depends on where its buffer begins.
            for start in range(0, grad.shape[0], self._block):
                self._update_block(start, grad[start : start + self._block], learning_rate, dropped)
        self.margin_state.advance(self.margin, learning_rate, dropped)
        self._gradient.forget()
        self._turns.end()
        self.step += 1

    def drop(self) -> None:
        """End a bad step: forget its gradient and what its batch was; what a fused update applied stays applied."""
        self._gradient.forget()
        self.margin_state.forget()
        self._turns.end()

    def _look(
        self, x_GD: torch.Tensor, target_G: torch.Tensor, embedding_norm_G: torch.Tensor, valid_G: torch.Tensor
    ) -> tuple[State, Warp | None]:
        """The margin's state after this batch, and what happens to the logits of the non-target classes."""
        cosine_G = self._target_cosines(x_GD, target_G) if self.margin_state.observes else None
        state = self.margin_state.look(self.margin, cosine_G, embedding_norm_G, valid_G)
        return state, self.margin.warp_of_batch(state, cosine_G)

    @torch.no_grad()
    def _target_cosines(self, x_GD: torch.Tensor, target_G: torch.Tensor) -> torch.Tensor:
        """cos θ to the target classes [G], wherever their rows are; 0 without a label. One all-reduce."""
        here_G = target_G >= 0
        cosine_G = cosine(x_GD, self.weight_SD[target_G.clamp(min=0)]).masked_fill(~here_G, 0)
        return sum_over_ranks(cosine_G, self.group)  # one rank has the target row, the others add zero

    def _drawn(self, samples_B: torch.Tensor | None, batch: int, step: int) -> torch.Tensor:
        """A normal number for each sample of the group's batch [G]: a hash of (seed, step, sample)."""
        here = self.weight_SD
        places_G = torch.arange(batch, device=here.device) if samples_B is None else gather_rows(samples_B, self.group)
        return normal(places_G, self.seed, step, _OF_MARGINS).to(here.dtype)

    def _among_step_rows(self, target_G: torch.Tensor, step: int) -> torch.Tensor:
        """The target classes' numbers among the rows that take part, which are chosen here."""
        if self.sample_rate >= 1:
            self._rows_n = None
            self._gradient.use(None)
            return target_G
        self._rows_n = sampled_rows(target_G, self.classes, self.sample_rate, self.seed, step)
        self._gradient.use(len(self._rows_n))
        return torch.where(target_G >= 0, torch.searchsorted(self._rows_n, target_G), target_G)

    def _score(
        self,
        x_GD: torch.Tensor,
        target_G: torch.Tensor,
        warp: Warp | None,
        state: State,
        step: int,
        learning_rate: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Target rows [G, D], which of them are here [G], and what the non-target classes here amount to [G].

        That is their log-sum-exp or, of binary classifications, the sum of their losses.

        `target_G` are row numbers here, or -1. Local: no collective.
        """
        margin, options, rows_n = self.margin, self.options, None
        if torch.is_grad_enabled():
            target_G = self._among_step_rows(target_G, step)
            rows_n = self._rows_n
        if self._kernel is None:  # not before: the module may have been moved since it was made
            self._kernel = options.kernel or choose(self.weight_SD.device.type, options.dtype, margin)
        batch, embedding_dim = x_GD.shape
        automatic = self._kernel.block_of(batch=batch, embedding_dim=embedding_dim, dtype=options.dtype)
        self._block = options.block or automatic
        scoring = Scoring(margin.normalises_rows, warp, options.dtype, block=self._block)
        features_GD, sink = margin.features(x_GD), self._sink(learning_rate)
        if isinstance(margin, BinaryMargin):
            others_G, target_rows_GD = nontarget_softplus(
                features_GD, self.weight_SD, target_G, state["bias"], scoring, sink, rows_n
            )
        else:
            others_G, target_rows_GD = self._kernel.nontarget_logsumexp(
                features_GD, self.weight_SD, target_G, scoring, sink, rows_n
            )
        here_G = target_G >= 0
        # Target rows of other ranks are zeros here, whose cosine has no gradient worth having: x replaces them, and
        # what comes of that is masked.
        return torch.where(here_G[:, None], target_rows_GD, x_GD.detach()), here_G, others_G

    def _sink(self, learning_rate: float) -> Sink:
        """What becomes of a block of the gradient: an update, or a part of the step's gradient."""
        if not self.options.fused_update:
            return Sink(self._gradient.take, self._gradient)
        alone = num_ranks(self.replicas) == 1
        update = FusedUpdate(self.rows, learning_rate) if alone else None
        return Sink(lambda start, grad: self._update_block(start, grad, learning_rate), update)

    def _update_block(
        self, start: int, grad: torch.Tensor, learning_rate: float, dropped: torch.Tensor | None = None
    ) -> None:
        """Average a block of the gradient over replicas and update its rows."""
        average_over_ranks_(grad, self.replicas)
        rows = slice(start, start + grad.shape[0])
        self.rows.update(rows if self._rows_n is None else self._rows_n[rows], grad, learning_rate, dropped)
