"""One optimizer step: all micro-batches forward and backward, agreed on by every rank, then applied or dropped.

On a GPU the host runs ahead of the device: it queues the whole step, the update included, and waits once, at the end,
for one tensor with all that it wants to know. Whether the step is dropped is decided on the device, where the update
reads it. Exceptions, each a wait more: a fused update of the rows, whose backward pass changes them and must not begin
in a bad step; an optimizer that is not fused; the sampling of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING

import torch

from cluster.ranks.collectives import Group, any_rank, average_over_ranks_, num_ranks, rank_in
from cluster.stopwatch import STEP
from pipeline.backbones import draws
from pipeline.backbones.backbone import seed_forward
from pipeline.head import HeadOutput, ShardedHead
from pipeline.recipe.schema import Recipe
from pipeline.training import clipping
from pipeline.training.agreement import Agreed, agree

if TYPE_CHECKING:  # these load DeepSpeed and DALI, which takes seconds: a start is checked before
    from pipeline.reading.reader import Batch
    from pipeline.training.engine import Engine


class Severity(IntEnum):
    """How bad a step is on the worst rank."""

    GOOD = 0
    SPIKE = 1
    NOT_FINITE = 2
    LEFT_OUT = 3

    @property
    def words(self) -> str:
        """As the log says it."""
        return {
            Severity.GOOD: "good",
            Severity.SPIKE: "a spike",
            Severity.NOT_FINITE: "not finite on at least one rank",
            Severity.LEFT_OUT: "left out",
        }[self]


@dataclass(frozen=True)
class Outcome:
    """What became of a step; unless `severity` is GOOD nothing of it was applied, except to rows if `rows_moved`.

    Attributes:
        severity, stopping: the same on every rank; `stopping` when any rank is asked to.
        loss: mean over the valid samples of a head's batch, then over micro-batches and replicas; NaN if the step was
            left out.
        target_cosine_G, embedding_norm_G, valid_G: of the head group's batch, on the CPU; empty if left out.
        gradient_norm: of the backbone's whole gradient, averaged over ranks, before clipping and weight decay; NaN if
            the step was given up before there was one.
        clip_ratio: what clipping multiplied the gradient by; None if the recipe clips nothing.
        rows_moved: a fused update changed the rows before the backbone's gradient, which comes later, was found bad.
        undecodable: samples of the global batch that could not be decoded; 0 if the step was left out.
        found: those of them that were not known to be so.
        slowest_seconds: of the slowest rank's own work in the step before; 0 if this step was left out.
    """

    severity: Severity
    stopping: bool
    loss: float
    target_cosine_G: torch.Tensor
    embedding_norm_G: torch.Tensor
    valid_G: torch.Tensor
    gradient_norm: float = torch.nan
    clip_ratio: float | None = None
    rows_moved: bool = False
    undecodable: int = 0
    found: int = 0
    slowest_seconds: float = 0.0


class Stepper:
    """Takes steps of backbone and head; knows of no data order, checkpoint or schedule.

    Args:
        engine, head, recipe: what is trained, and how.
        group: all ranks.
        replicas: the ranks that hold the same rows.
        device: where the ranks' flags are agreed on.
    """

    def __init__(
        self, engine: Engine, head: ShardedHead, recipe: Recipe, group: Group, replicas: Group, device: torch.device
    ) -> None:
        self._engine, self._head, self._recipe = engine, head, recipe
        self._group, self._replicas, self._device = group, replicas, device

    def leave_out(self, stop_asked: Callable[[], bool]) -> Outcome:
        """Only ask whether to stop: one all-reduce of a flag."""
        nothing = torch.empty(0)
        stopping = any_rank(stop_asked(), self._group, self._device)
        return Outcome(Severity.LEFT_OUT, stopping, torch.nan, nothing, nothing, nothing.bool())

    def take(
        self,
        batch: Batch,
        step: int,
        *,
        lambda_: float | None,
        learning_rate: float,
        spike_above: float,
        stop_asked: Callable[[], bool],
        own_seconds: float = 0.0,
    ) -> Outcome:
        """Forward and backward; gradients agreed to be good by every rank before anything is changed.

        Args:
            batch: this rank's images and labels.
            step: steps done before.
            lambda_: of the margin; None if it has none.
            learning_rate: the base rate of the step.
            spike_above: the loss beyond which the step is bad.
            stop_asked: whether this rank is asked to stop.
            own_seconds: this rank's own work in the step before, for `Outcome.slowest_seconds`.
        """
        parts, recipe = self._recipe.data.accumulation, self._recipe.head
        outputs: list[HeadOutput] = []
        gradients: list[torch.Tensor] = []
        agreed: Agreed | None = None
        dropped: torch.Tensor | None = None
        self._engine.keep_buffers()
        self._head.margin, self._head.sample_rate = recipe.margin_at(step), recipe.sample_rate_at(step)
        pieces = (batch.images_BCHW, batch.labels_B, self._numbers(batch))
        numbers = batch.ids_B.reshape(parts, -1)
        for images, labels, samples in zip(*(piece.chunk(parts) for piece in pieces), strict=True):
            with STEP.part("forward"):
                draws.draw(self._engine.module, self._recipe.seed, step, numbers[len(outputs)], self._device)
                seed_forward(self._recipe.seed, step, rank_in(self._group), micro_batch=len(outputs))
                embeddings_BD = self._engine.embed(images)
            with STEP.part("head"):
                x_BD = embeddings_BD.detach().requires_grad_()
                output = self._head(x_BD, labels, lambda_, step=step, learning_rate=learning_rate, samples_B=samples)
                outputs.append(output)
                if self._recipe.head.fused_update:  # its backward pass changes the rows
                    agreed = self._agree(batch, outputs, [], [], None, spike_above, stop_asked, own_seconds)
                    if agreed.severity.item() != Severity.GOOD:
                        self._undo()
                        return replace(self._read(agreed, outputs), gradient_norm=torch.nan, clip_ratio=None)
                # the step's loss is the mean over its micro-batches
                (output.loss / parts).backward()
            assert x_BD.grad is not None
            gradients.append(x_BD.grad)
            with STEP.part("backward"):
                self._engine.backward(embeddings_BD, x_BD.grad)
            if len(outputs) == parts:
                rows, backbone = self._head.row_gradient, self._engine.gradients()
                agreed = self._agree(batch, outputs, gradients, backbone, rows, spike_above, stop_asked, own_seconds)
                dropped = (agreed.severity != Severity.GOOD).float()
                self._clip(agreed, backbone, rows)
            with STEP.part("update"):
                self._engine.step(learning_rate, dropped)
        with STEP.part("update"):
            self._head.update(learning_rate, dropped)
        assert agreed is not None
        outcome = self._read(agreed, outputs)
        if outcome.severity == Severity.GOOD:
            return outcome
        self._undo()
        return replace(outcome, rows_moved=self._recipe.head.fused_update)

    def _numbers(self, batch: Batch) -> torch.Tensor:
        """The samples' numbers in the set [B], where the head is."""
        numbers = torch.from_numpy(batch.ids_B)
        if self._device.type == "cuda":  # from pinned memory the host need not wait for the copy
            numbers = numbers.pin_memory()
        return numbers.to(self._device, non_blocking=True)

    def _undo(self) -> None:
        """Take back what the forward pass of a bad step changed."""
        self._engine.restore_buffers()
        self._head.drop()

    def _clip(self, agreed: Agreed, backbone: list[torch.Tensor], rows: torch.Tensor | None) -> None:
        """Clip the backbone's gradient and, by choice, that of the rows with it: one norm for both."""
        most = self._recipe.optimizer.clip_norm
        if most is not None:
            parts = [*backbone, rows] if self._recipe.optimizer.clip_rows and rows is not None else backbone
            clipping.clip_(parts, self._clipped_square(agreed), most)

    def _clipped_square(self, agreed: Agreed) -> torch.Tensor:
        """The square of the norm that clipping looks at."""
        rows = agreed.rows_square if self._recipe.optimizer.clip_rows else 0
        return agreed.backbone_square + rows

    def _agree(
        self,
        batch: Batch,
        outputs: list[HeadOutput],
        embeddings: list[torch.Tensor],
        backbone: list[torch.Tensor],
        rows: torch.Tensor | None,
        spike_above: float,
        stop_asked: Callable[[], bool],
        own_seconds: float,
    ) -> Agreed:
        """See `Agreed`; the lists are gradients, as far as there are any yet. One all-reduce."""
        loss = torch.stack([output.loss.detach() for output in outputs]).mean()
        numbers = [loss, *(output.embedding_norm_G.sum() for output in outputs)]
        parts = loss.new_zeros(4)
        parts[2], parts[3] = len(batch.undecodable), len(batch.found)
        if backbone:
            # one pass over the gradients: a norm is finite if and only if all its numbers are (and their squares fit)
            gradients = [*backbone, *embeddings] if rows is None else [*backbone, *embeddings, rows]
            norms = [norm.to(loss.dtype) for norm in torch._foreach_norm(gradients)]
            numbers += norms
            holders = 1 if self._engine.gradients_in_parts else num_ranks(self._group)
            parts[0] = torch.stack(norms[: len(backbone)]).square().sum() / holders
            if rows is not None:
                parts[1] = norms[-1].square()
        finite = torch.isfinite(torch.stack(numbers)).all()
        spike = (loss > spike_above).float() * Severity.SPIKE
        severity = torch.where(finite, spike, torch.full_like(spike, Severity.NOT_FINITE))
        told = (float(stop_asked()), own_seconds)
        flags = torch.stack([severity, *(torch.full_like(severity, number) for number in told)])
        return agree(flags, parts, self._group)

    def _read(self, agreed: Agreed, outputs: list[HeadOutput]) -> Outcome:
        """All that the host learns of a step, in one copy: here it waits for the device.

        The samples' numbers come as they are, a few kilobytes: what is computed of them costs the device nothing.
        """
        mean = torch.stack([output.loss.detach() for output in outputs]).double().mean()
        average_over_ranks_(mean, self._replicas)
        cosine_G = torch.cat([output.target_cosine_G for output in outputs])
        norm_G = torch.cat([output.embedding_norm_G for output in outputs])
        valid_G = torch.cat([output.valid_G for output in outputs])
        # every float32 and every flag is itself in float64
        pieces = [torch.stack(agreed), mean[None], cosine_G.double(), norm_G.double(), valid_G.double()]
        numbers, loss, *of_samples = torch.cat(pieces).cpu().split([len(piece) for piece in pieces])
        found = Agreed(*numbers)
        most = self._recipe.optimizer.clip_norm
        ratio = None if most is None else clipping.coefficient(self._clipped_square(found), most).item()
        return Outcome(
            Severity(int(found.severity)),
            bool(found.stopping),
            loss.tolist()[0],
            of_samples[0].to(cosine_G.dtype),
            of_samples[1].to(norm_G.dtype),
            of_samples[2].bool(),
            found.backbone_square.sqrt().item(),
            ratio,
            undecodable=int(found.undecodable),
            found=int(found.found),
            slowest_seconds=found.slowest_seconds.item(),
        )
