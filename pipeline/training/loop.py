"""The training loop: one step after another, each agreed across ranks before anything is changed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cluster.collectives import SENT, Group, num_ranks, rank_in
from cluster.process_group import background_group, grid
from cluster.stopwatch import STEP
from cluster.topology import Topology
from pipeline.head.head import HeadOptions, ShardedHead
from pipeline.head.health import StallWatch, TargetAngles, target_angles
from pipeline.optim.schedule import learning_rate
from pipeline.reading.augment import Augmentation
from pipeline.reading.dali import Decoder
from pipeline.reading.order import Order
from pipeline.reading.reader import Reader
from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Recipe, check_against_set
from pipeline.run import checkpoint
from pipeline.run.checkpoint import CheckpointError, Meta, State
from pipeline.run.saver import Saved, Saver
from pipeline.shards.views import read_identities
from pipeline.training.engine import Engine
from pipeline.training.errors import UnsavedError
from pipeline.training.guard import Guard
from pipeline.training.inherit import Inherited, class_mean_rows, inherit_rows, match, old_identities
from pipeline.training.step import Outcome, Severity, Stepper

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
        gradient_norm: of the backbone's gradient, before weight decay; NaN where the step had none.
        samples: in the global batch, undecodable ones included.
        seconds: wall time of the step on this rank.
        parts: the same by part; what is left over is bookkeeping.
        decode_failures: of this rank since the start.
        ready: batches decoded and waiting.
        sent: bytes that this rank sent in the step, by shapes: for the head, and for the backbone.
        head_bytes: held by this rank's rows, their momentum and gradient.
        stall_seconds: how long the loop stood still to copy the state out for a checkpoint; None without one.
        saved: how a save ended, if one did during this step.
        skipped: why nothing of the step was applied, a `Severity`'s name in lower case; None where it was.
        stopping: whether the run ends here because a rank was asked to stop; the same on every rank.
    """

    step: int
    epoch: float
    loss: float
    anneal: float
    learning_rate: float
    own_cosine: float
    norm: float
    gradient_norm: float
    angles: TargetAngles | None
    chance: float
    samples: int
    seconds: float
    parts: dict[str, float]
    decode_failures: int
    ready: int
    sent: tuple[int, int]
    head_bytes: int
    stall_seconds: float | None = None
    saved: Saved | None = None
    skipped: str | None = None
    stopping: bool = False


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
        self._guard = Guard(recipe.faults, run if topology.rank == 0 else None)
        self._stall = StallWatch(max(2, manifest.identities), recipe.log.stall_steps)
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
        backbone = recipe.backbone.build(size).to(device)
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
        self.stepper = Stepper(self.engine, self.head, recipe, group, self._replicas, device)

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
            UnsavedError: on every rank, when the last save fails. (One in between that fails is told, and passed over.)
        """
        if self.step == 0:
            self.save()  # before hours of training, a folder that cannot be written shows
        STEP.use(self.device)
        SENT.take()  # what was sent before is no step's
        reader = self.reader()
        try:
            while self.step < self.recipe.optimizer.steps:
                record = self._one_step(reader, stop_asked)
                yield record
                if record.stopping:
                    return
                if self._guard.going_back:
                    reader.close()
                    self._go_back()
                    reader = self.reader()
        finally:
            reader.close()

    def begin_save(self) -> float:
        """Begin to write the checkpoint of the current step; the seconds that this held up. All ranks together."""
        return self.saver.begin(self._state(), self._meta())

    def save(self) -> Saved:
        """Write the checkpoint of the current step and wait for it; all ranks together.

        Raises:
            CheckpointError: on every rank, when it could not be written.
        """
        self.begin_save()
        saved = self.saver.finish()
        assert saved is not None
        if saved.error:
            raise CheckpointError(f"{self.run}: checkpoint of step {saved.step} not written: {saved.error}")
        return saved

    def _one_step(self, reader: Reader, stop_asked: Callable[[], bool]) -> Record:
        started = time.perf_counter()
        with STEP.part("data_wait"):
            batch = next(reader)
        lam, rate = self.recipe.head.anneal(self.step), self._learning_rate(self.step)
        if self.step in self._guard.left_out:
            outcome = self.stepper.leave_out(stop_asked)
        else:
            outcome = self.stepper.take(
                batch, self.step, lam=lam, rate=rate, spike_above=self._guard.threshold, stop_asked=stop_asked
            )
        own_cosine, norm = outcome.own_cosine_G[outcome.valid_G], outcome.norm_G.mean().item()
        if outcome.severity == Severity.GOOD:
            self._guard.good(outcome.loss)
        elif outcome.severity != Severity.LEFT_OUT:
            self._take_fault(outcome, lam, rate)
        angles = None if outcome.severity == Severity.LEFT_OUT else self._angles(own_cosine, outcome.loss, lam)
        self.step += 1
        record = Record(
            step=self.step,
            epoch=self.step / self.order.steps_per_epoch,
            loss=outcome.loss,
            anneal=lam,
            learning_rate=rate,
            own_cosine=own_cosine.mean().item(),
            norm=norm,
            gradient_norm=outcome.gradient_norm,
            angles=angles,
            chance=outcome.loss / math.log(max(2, self.head.num_classes)),
            samples=self.recipe.data.global_batch,
            seconds=time.perf_counter() - started,
            parts=STEP.take(),
            decode_failures=reader.decode_failures,
            ready=reader.ready,
            sent=(SENT.take(), 0 if outcome.severity == Severity.LEFT_OUT else self.engine.sent_bytes),
            head_bytes=self.head.held_bytes,
            skipped=None if outcome.severity == Severity.GOOD else outcome.severity.name.lower(),
            stopping=outcome.stopping,
        )
        if outcome.rows_moved or (self._guard.going_back and not outcome.stopping):
            return record
        stall, saved = self._save_if_due(outcome.stopping or self.step == self.recipe.optimizer.steps)
        return replace(record, stall_seconds=stall, saved=saved)

    def _take_fault(self, outcome: Outcome, lam: float, rate: float) -> None:
        """Tell the guard of a bad step: what it was, and which samples were in it. The same on every rank."""
        what = (
            f"step {self.step}: loss {outcome.loss:g} (λ {lam:g}, learning rate {rate:g}, mean ‖x‖ "
            f"{outcome.norm_G.mean().item():g}): {outcome.severity.words}"
        )
        facts = {"fault": what, "step": self.step, "loss": outcome.loss, "lambda": lam, "learning_rate": rate}
        facts |= {"norm": outcome.norm_G.tolist(), "own_cosine": outcome.own_cosine_G.tolist()}
        facts["samples"] = [self.shards.describe(int(sample)) for sample in self.order.batch(self.step)]
        self._guard.bad(self.step, what, facts, rows_moved=outcome.rows_moved)

    def _go_back(self) -> None:
        """Load the newest whole checkpoint; the steps to be left out are then passed without being applied."""
        self.saver.finish()
        with self.saver.patience("a roll-back"):
            newest = checkpoint.newest_whole(self.run, self.group)
            assert newest is not None, "a run saves before its first step"
            if self.topology.rank == 0:
                logger.warning("back to step %d; left out from there: batches %s", newest, sorted(self._guard.left_out))
            self.resume(newest)
        self._guard.going_back = False

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
            saved = self._save_last()
        else:
            self.begin_save()
        return time.perf_counter() - started, saved

    def _save_last(self) -> Saved:
        try:
            return self.save()
        except CheckpointError as error:
            newest = max(checkpoint.complete_steps(self.run), default=None)
            since = "from the start" if newest is None else f"from the checkpoint of step {newest}"
            raise UnsavedError(f"{error}. Make room; the same command then goes on {since}") from None

    def _angles(self, own_cosine: torch.Tensor, loss: float, lam: float) -> TargetAngles:
        """The step's target angles; says so when they have stalled."""
        angles = target_angles(own_cosine, self.head.margin.m)
        words = self._stall.look(self.step, loss, angles.median, lam, self.recipe.head.anneal_floor(self.step))
        if words and self.topology.rank == 0:
            logger.warning("step %d: %s", self.step, words)
        return angles

    def _learning_rate(self, step: int) -> float:
        optimizer = self.recipe.optimizer
        return learning_rate(
            step,
            optimizer.learning_rate,
            steps=optimizer.steps,
            warmup_steps=optimizer.warmup_steps,
            milestones=optimizer.milestones,
            decay=optimizer.decay,
            power=optimizer.power,
        )

    def reader(self) -> Reader:
        """This rank's share of the batches from the current step on; to be closed."""
        data = self.recipe.data
        share = data.global_batch // self.topology.num_ranks
        decoder = self._decoder(share, data.augment)
        return Reader(
            self.shards,
            self.order,
            decoder,
            rank=self.topology.rank,
            num_ranks=self.topology.num_ranks,
            first_step=self.step,
            depth=data.prefetch,
        )

    def _decoder(self, batch_size: int, augment: Sequence[Augmentation] = ()) -> Decoder:
        manifest = self.shards.manifest
        threads = self.recipe.data.decode_threads
        return Decoder(batch_size, manifest.image_height, manifest.image_width, self.device, threads, augment)

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
