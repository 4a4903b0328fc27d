"""The training loop: one step after another, each agreed across ranks before anything is changed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cluster.collectives import Group, any_rank, average_over_ranks_, max_over_ranks, num_ranks, rank_in
from cluster.process_group import background_group, grid
from cluster.stopwatch import STEP
from cluster.topology import Topology
from pipeline.backbones import build_backbone
from pipeline.config import Recipe, check_against_set
from pipeline.head.head import HeadOptions, HeadOutput, ShardedHead
from pipeline.head.health import StallWatch, TargetAngles, target_angles
from pipeline.reading.dali import Decoder
from pipeline.reading.order import Order
from pipeline.reading.reader import Batch, Reader
from pipeline.reading.tars import ShardSet
from pipeline.shards.views import read_identities
from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointError, Meta, State
from pipeline.training.engine import Engine
from pipeline.training.guard import Guard, dump
from pipeline.training.inherit import Inherited, class_mean_rows, inherit_rows, match, old_identities
from pipeline.training.saver import Saved, Saver
from pipeline.training.schedule import learning_rate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What one step was, for whoever watches.

    Attributes:
        step: steps done, this one included.
        epoch: passes over the set, with the fraction of the current one.
        loss: mean over the global batch, the same on every rank.
        anneal: λ.
        learning_rate: the base rate.
        own_cosine: mean cos θ to the own class over the batch of the head's group.
        angles: the distribution of θ over the same; None where the step was left out.
        chance: the loss over ln C; 1 is what guessing costs.
        norm: mean ‖x‖.
        samples: in the global batch, undecodable ones included.
        seconds: wall time of the step on this rank.
        parts: the same by part; what is left over is bookkeeping.
        decode_failures: of this rank since the start.
        ready: batches decoded and waiting.
        stall_seconds: how long the loop stood still to copy the state out for a checkpoint; None without one.
        saved: how a save ended, if one did during this step.
        skipped: whether nothing of the step was applied, because its numbers were wrong.
    """

    step: int
    epoch: float
    loss: float
    anneal: float
    learning_rate: float
    own_cosine: float
    norm: float
    angles: TargetAngles | None
    chance: float
    samples: int
    seconds: float
    parts: dict[str, float]
    decode_failures: int
    ready: int
    stall_seconds: float | None = None
    saved: Saved | None = None
    skipped: bool = False


# How bad a step is on the worst rank, and in words.
_GOOD, _SPIKE, _NOT_FINITE, _LEFT_OUT = range(4)
_WORDS = {_SPIKE: "a spike", _NOT_FINITE: "not finite on at least one rank"}


@dataclass(frozen=True)
class _Verdict:
    """What all ranks agreed on about a step."""

    severity: int
    stopping: bool


class Trainer:
    """A run on this rank: backbone, head, data and checkpoints made from the recipe.

    Needs the process group to exist. Everything random comes from ``recipe.seed``, so a run is a function of
    (recipe, shards), whatever the number of ranks.

    Args:
        recipe, shards: what to do, on what.
        run: the run's folder.
        topology, group, device: where.

    Raises:
        RecipeError: when recipe, shards and ranks do not go together.
    """

    def __init__(
        self, recipe: Recipe, shards: ShardSet, run: Path, topology: Topology, group: Group, device: torch.device
    ) -> None:
        manifest = shards.manifest
        check_against_set(
            recipe, samples=manifest.samples, identities=manifest.identities, num_ranks=topology.num_ranks
        )
        self.recipe, self.shards, self.run, self.topology = recipe, shards, run, topology
        self.group, self.device = group, device
        self.step = 0
        self._guard = Guard(recipe.faults)
        self._left_out: set[int] = set()
        self._stall = StallWatch(max(2, manifest.identities), recipe.log.stall_steps)
        self._going_back = False
        self.saver = Saver(
            run,
            None if group is None else background_group(),
            recipe.checkpoint.keep,
            recipe.checkpoint.keep_every,
        )
        self.order = Order(
            shards.samples_per_tar, recipe.seed, recipe.data.global_batch, recipe.data.streams, recipe.data.window
        )
        torch.manual_seed(recipe.seed)
        size = (manifest.image_height, manifest.image_width)
        backbone = build_backbone(recipe.backbone.name, recipe.backbone.embedding_dim, size).to(device)
        sharing, self._replicas = grid(topology.num_ranks, recipe.head.ranks or topology.num_ranks)
        self.engine = Engine(backbone, recipe, topology.num_ranks, num_ranks(sharing))
        self.head = ShardedHead(
            manifest.identities,
            recipe.backbone.embedding_dim,
            recipe.head.make_margin(),
            sharing,
            replicas=self._replicas,
            seed=recipe.seed,
            momentum=recipe.optimizer.momentum,
            weight_decay=recipe.optimizer.weight_decay,
            options=_head_options(recipe),
            device=device,
        )

    def resume(self, step: int) -> None:
        """Go on from the checkpoint after `step` steps, written by any number of ranks. All ranks together."""
        state = self._state()
        checkpoint.load(self.run, step, state, self._meta())
        self.engine.load(state.backbone, state.momenta)
        self.step = step

    def inherit(self, run: Path, step: int | None, new_rows: str) -> Inherited:
        """Start from another run's backbone and, by name, its rows; momenta start at zero. All ranks together.

        Raises:
            CheckpointError: when the other run cannot be read, or its backbone is another.
        """
        steps = checkpoint.complete_steps(run)
        step = steps[-1] if step is None and steps else step
        weights = checkpoint.load_backbone(run, step)
        assert step is not None
        saved = checkpoint.read_meta(checkpoint.path_of(run, step))
        if (
            saved.embedding_dim != self.recipe.backbone.embedding_dim
            or weights.keys() != self.engine.parameters().keys()
        ):
            raise CheckpointError(
                f"init.run: {run}: another backbone: got {self.recipe.backbone.name} with embedding_dim "
                f"{self.recipe.backbone.embedding_dim}, wanted that of {run / 'recipe.yaml'}"
            )
        self.engine.load(weights, {name: torch.zeros_like(m) for name, m in self.engine.momenta().items()})
        old = old_identities(run, step)
        old_rows = match(old, read_identities(self.shards.folder, self.shards.manifest))
        inherit_rows(self.head, run, step, old_rows)
        if new_rows == "class_mean":
            class_mean_rows(self.head, self.engine.module, self.shards, old_rows, self._decoder(64), self.head.group)
        kept = int((old_rows >= 0).sum())
        return Inherited(kept, len(old_rows) - kept, len(old) - kept)

    def train(self, stop_asked: Callable[[], bool] = lambda: False) -> Iterator[Record]:
        """Run the steps that are left, yielding after each; saves on the way, at the end and when asked to stop.

        Ranks agree on stopping: one that is asked stops all after the same step.

        Raises:
            NonFiniteError: on every rank, before anything of that step was applied, where `faults` says so.
        """
        if self.step == 0:
            self.save()  # before hours of training, a folder that cannot be written shows
        STEP.use(self.device)
        reader = self._reader()
        try:
            while self.step < self.recipe.optimizer.steps:
                record, stopping = self._one_step(reader, stop_asked)
                yield record
                if stopping:
                    return
                if self._going_back:
                    reader.close()
                    self._go_back()
                    reader = self._reader()
        finally:
            reader.close()

    def save(self) -> Saved:
        """Write the checkpoint of the current step and wait for it; all ranks together.

        Raises:
            CheckpointError: on every rank, when it could not be written.
        """
        self.saver.begin(self._state(), self._meta())
        saved = self.saver.finish()
        assert saved is not None
        if saved.error:
            raise CheckpointError(f"{self.run}: checkpoint of step {saved.step} not written: {saved.error}")
        return saved

    def _one_step(self, reader: Reader, stop_asked: Callable[[], bool]) -> tuple[Record, bool]:
        started = time.perf_counter()
        with STEP.part("data_wait"):
            batch = next(reader)
        if self.step in self._left_out:
            outputs: list[HeadOutput] = []
            verdict = _Verdict(_LEFT_OUT, any_rank(stop_asked(), self.group, self.device))
        else:
            outputs, verdict = self._forward_backward(batch, stop_asked)
        loss, own_cosine, norm = self._means(outputs) if outputs else (math.nan,) * 3
        angles = self._angles(outputs, loss) if outputs else None
        if verdict.severity in _WORDS:
            self._take_fault(verdict, outputs, loss, norm)
        elif verdict.severity == _GOOD:
            self._guard.good(loss)
        self.step += 1
        record = Record(
            step=self.step,
            epoch=self.step / self.order.steps_per_epoch,
            loss=loss,
            anneal=self._anneal(self.step - 1),
            learning_rate=self._learning_rate(self.step - 1),
            own_cosine=own_cosine,
            norm=norm,
            angles=angles,
            chance=loss / math.log(max(2, self.head.num_classes)),
            samples=self.recipe.data.global_batch,
            seconds=time.perf_counter() - started,
            parts=STEP.take(),
            decode_failures=reader.decode_failures,
            ready=reader.ready,
            skipped=verdict.severity != _GOOD,
        )
        if self._going_back and not verdict.stopping:
            return record, False
        stall, saved = self._save_if_due(verdict.stopping or self.step == self.recipe.optimizer.steps)
        return replace(record, stall_seconds=stall, saved=saved), verdict.stopping

    def _take_fault(self, verdict: _Verdict, outputs: list[HeadOutput], loss: float, norm: float) -> None:
        """Dump a bad step, and stop, or mark what the recipe wants left out. The same on every rank."""
        lam, rate = self._anneal(self.step), self._learning_rate(self.step)
        what = (
            f"step {self.step}: loss {loss:g} (λ {lam:g}, learning rate {rate:g}, mean ‖x‖ {norm:g}): "
            f"{_WORDS[verdict.severity]}"
        )
        if self.topology.rank == 0:
            ids = self.order.batch(self.step)
            facts = {"fault": what, "step": self.step, "loss": loss, "lambda": lam, "learning_rate": rate}
            facts["norm"] = torch.cat([output.norm_G for output in outputs]).tolist()
            facts["own_cosine"] = torch.cat([output.own_cosine_G for output in outputs]).tolist()
            facts["samples"] = [self.shards.describe(int(sample)) for sample in ids]
            dump(self.run, self.step, facts)
        advice = "A smaller optimizer.learning_rate or a longer optimizer.warmup_steps may cure it"
        if self._guard.bad(what, advice) == "roll_back":
            self._left_out.update(range(self.step - self.recipe.faults.leave_out + 1, self.step + 1))
            self._going_back = True

    def _go_back(self) -> None:
        """Load the newest whole checkpoint; the steps to be left out are then passed without being applied."""
        self.saver.finish()
        newest = checkpoint.newest_whole(self.run, self.group)
        assert newest is not None, "a run saves before its first step"
        if self.topology.rank == 0:
            logger.warning("back to step %d; left out from there: batches %s", newest, sorted(self._left_out))
        self.resume(newest)
        self._going_back = False

    def _save_if_due(self, last: bool) -> tuple[float | None, Saved | None]:
        """Begin a save where the recipe wants one (wait for the `last`); the loop's stall, and a save that ended."""
        due = last or self.step % self.recipe.checkpoint.every == 0
        saved = self.saver.finish() if due else self.saver.poll()
        if saved is not None and saved.error is not None and self.topology.rank == 0:
            logger.error(
                "checkpoint of step %d not written: %s. Training goes on; a crash now would go back to step %s",
                *(saved.step, saved.error, max(checkpoint.complete_steps(self.run), default="0 of a new run")),
            )
        if not due:
            return None, saved
        started = time.perf_counter()
        if last:
            saved = self.save()
        else:
            self.saver.begin(self._state(), self._meta())
        return time.perf_counter() - started, saved

    def _forward_backward(self, batch: Batch, stop_asked: Callable[[], bool]) -> tuple[list[HeadOutput], _Verdict]:
        """All micro-batches: gradients everywhere, agreed to be good before they are applied."""
        parts = self.recipe.data.accumulation
        lam, rate = self._anneal(self.step), self._learning_rate(self.step)
        outputs: list[HeadOutput] = []
        gradients: list[torch.Tensor] = []
        verdict = _Verdict(_GOOD, stopping=False)
        self.engine.keep_buffers()
        self.head.margin = self.recipe.head.make_margin(self.step)
        for images, labels in zip(batch.images_BCHW.chunk(parts), batch.labels_B.chunk(parts), strict=True):
            with STEP.part("forward"):
                embeddings_BD = self.engine.embed(images)
            with STEP.part("head"):
                x_BD = embeddings_BD.detach().float().requires_grad_()
                output = self.head(x_BD, labels, lam, step=self.step, learning_rate=rate)
                outputs.append(output)
                if self.recipe.head.fused_update:  # its backward pass changes the rows
                    verdict = self._agree(outputs, [], stop_asked)
                    if verdict.severity != _GOOD:
                        self.engine.restore_buffers()
                        return outputs, verdict
                # the step's loss is the mean over its micro-batches
                (output.loss / parts).backward()
            assert x_BD.grad is not None
            gradients.append(x_BD.grad)
            with STEP.part("backward"):
                self.engine.backward(embeddings_BD, x_BD.grad.to(embeddings_BD.dtype))
            if len(outputs) == parts:
                verdict = self._agree(outputs, gradients + self._own_gradients(), stop_asked)
            with STEP.part("update"):
                self.engine.step(rate, drop=verdict.severity != _GOOD)
        with STEP.part("update"):
            if verdict.severity == _GOOD:
                self.head.update(rate)
            else:
                self.head.drop()
        return outputs, verdict

    def _own_gradients(self) -> list[torch.Tensor]:
        rows = self.head.weight_SD.grad  # not there where it was applied at once, or only some rows take part
        return self.engine.gradients() + ([] if rows is None else [rows])

    def _agree(
        self, outputs: list[HeadOutput], gradients: list[torch.Tensor], stop_asked: Callable[[], bool]
    ) -> _Verdict:
        """One all-reduce of two numbers: how bad is it on the worst rank, and is any rank asked to stop."""
        loss = torch.stack([output.loss.detach() for output in outputs]).mean()
        numbers = [loss, *(output.norm_G.sum() for output in outputs)]
        if gradients:
            # one pass over the gradients: a norm is finite if and only if all its numbers are (and their squares fit)
            numbers += [norm.to(loss.dtype) for norm in torch._foreach_norm(gradients)]
        finite = torch.isfinite(torch.stack(numbers)).all()
        spike = (loss > self._guard.threshold).float() * _SPIKE
        severity = torch.where(finite, spike, torch.full_like(spike, _NOT_FINITE))
        flags = torch.stack([severity, torch.full_like(severity, float(stop_asked()))])
        worst, stopping = max_over_ranks(flags, self.group).tolist()
        return _Verdict(int(worst), stopping > 0)

    def _means(self, outputs: list[HeadOutput]) -> tuple[float, float, float]:
        """Loss over the global batch, micro-batches and replicas alike; own cosine and ‖x‖ over the head group's."""
        mean = torch.stack([output.loss.detach() for output in outputs]).double().mean()
        average_over_ranks_(mean, self._replicas)
        valid = torch.cat([output.valid_G for output in outputs])
        own_cosine = torch.cat([output.own_cosine_G for output in outputs])[valid].mean()
        return mean.item(), own_cosine.item(), torch.cat([output.norm_G for output in outputs]).mean().item()

    def _angles(self, outputs: list[HeadOutput], loss: float) -> TargetAngles:
        """The step's target angles; says so when they have stalled."""
        valid = torch.cat([output.valid_G for output in outputs])
        own_cosine = torch.cat([output.own_cosine_G for output in outputs])[valid]
        angles = target_angles(own_cosine, self.head.margin.m)
        floor = self.recipe.head.anneal_floor(self.step)
        words = self._stall.look(self.step, loss, angles.median, self._anneal(self.step), floor)
        if words and self.topology.rank == 0:
            logger.warning("step %d: %s", self.step, words)
        return angles

    def _anneal(self, step: int) -> float:
        return self.recipe.head.anneal(step)

    def _learning_rate(self, step: int) -> float:
        optimizer = self.recipe.optimizer
        return learning_rate(
            step,
            optimizer.learning_rate,
            warmup_steps=optimizer.warmup_steps,
            milestones=optimizer.milestones,
            decay=optimizer.decay,
        )

    def _reader(self) -> Reader:
        data = self.recipe.data
        share = data.global_batch // self.topology.num_ranks
        decoder = self._decoder(share)
        return Reader(
            self.shards,
            self.order,
            decoder,
            rank=self.topology.rank,
            num_ranks=self.topology.num_ranks,
            first_step=self.step,
            mirror=data.mirror,
            depth=data.prefetch,
        )

    def _decoder(self, batch_size: int) -> Decoder:
        manifest = self.shards.manifest
        threads = self.recipe.data.decode_threads
        return Decoder(batch_size, manifest.image_height, manifest.image_width, self.device, threads)

    def _state(self) -> State:
        return State(
            rows_SD=self.head.weight_SD.detach(),
            rows_momentum_SD=self.head.optimizer.velocity_SD,
            first_class=self.head.classes.start,
            backbone=self.engine.parameters(),
            momenta=self.engine.momenta(),
            replica=rank_in(self._replicas),
            num_replicas=num_ranks(self._replicas),
        )

    def _meta(self) -> Meta:
        manifest = self.shards.manifest
        return Meta(
            step=self.step,
            num_classes=manifest.identities,
            embedding_dim=self.recipe.backbone.embedding_dim,
            identities_sha256=manifest.identities_sha256,
            num_ranks=self.topology.num_ranks,
        )


def _head_options(recipe: Recipe) -> HeadOptions:
    return HeadOptions(
        dtype=torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32,
        block=recipe.head.block,
        fused_update=recipe.head.fused_update,
        sample_rate=recipe.head.sample_rate,
    )
