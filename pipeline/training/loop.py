"""The training loop: one step after another, each agreed across ranks before anything is changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch

from cluster.ranks.collectives import SENT, Group
from cluster.ranks.process_group import grid
from cluster.ranks.topology import Topology
from cluster.stopwatch import STEP
from pipeline.backbones import batch_norm
from pipeline.backbones.frozen import freeze
from pipeline.backbones.recompute import recompute
from pipeline.head import HeadOptions, ShardedHead
from pipeline.head.health import StallWatch, TargetAngles, target_angles
from pipeline.planning.of_recipe import floors_of
from pipeline.planning.utilisation import Floors
from pipeline.reading.augmentation import Augmentation
from pipeline.reading.dali import Decoder
from pipeline.reading.order import Order
from pipeline.reading.reader import Reader
from pipeline.reading.tars import ShardSet
from pipeline.recipe.fit import backbone_faults, check_against_set
from pipeline.recipe.schema import Recipe
from pipeline.run.changes import with_streams
from pipeline.run.folder import RunFolder
from pipeline.run.whole import newest_whole
from pipeline.shards.format.manifest import ShardError
from pipeline.training.engine import Engine
from pipeline.training.guard import Guard, NonFiniteError, fault_of
from pipeline.training.inherit import Inherited, inherit
from pipeline.training.record import Record, Values, measured, memory_by_part, shares_of
from pipeline.training.saves import Saves
from pipeline.training.step import Outcome, Severity, Stepper
from pipeline.training.suspects import Suspects
from pipeline.training.tracing import Tracer
from pipeline.training.undecodable import Remembered, UndecodableLimit

logger = logging.getLogger(__name__)


class Trainer:
    """A run on this rank: backbone, head, data and checkpoints made from the recipe.

    Needs the process group to exist. Everything random comes from ``recipe.seed``, so a run is a function of (recipe,
    shards). On the same number of ranks and threads it repeats bit for bit; on others, which add in another order, a
    step from the same state agrees to a relative 1e-6, and with batch norms only if they are synchronised.

    Args:
        recipe, shards: what to do, on what.
        run: the run's folder.
        topology, group, device: where.

    Attributes:
        step: steps done.
        engine, head, stepper, saves, order: what it is made of.

    Raises:
        RecipeError: when recipe, shards and ranks do not go together.
    """

    def __init__(
        self, recipe: Recipe, shards: ShardSet, run: Path, topology: Topology, group: Group, device: torch.device
    ) -> None:
        manifest = shards.manifest
        # First what costs nothing and may refuse; it depends on facts that all ranks share, so all refuse or none.
        size = (manifest.image_height, manifest.image_width)
        check_against_set(
            recipe,
            samples=manifest.samples,
            identities=manifest.identities,
            image_size=size,
            num_ranks=topology.num_ranks,
        )
        recipe = with_streams(run, recipe, manifest)
        self.recipe, self.shards, self.run, self.topology = recipe, shards, run, topology
        self.group, self.device = group, device
        self.step, self._resumed, self._undecodable = 0, False, 0
        # of the step before, this rank's: own work, and communication
        self._own_seconds = self._communication_seconds = 0.0
        self._guard = Guard(recipe.faults, run if topology.rank == 0 else None)
        self._limit = UndecodableLimit(recipe.data.max_undecodable, shards.describe, group)
        self._tracer = Tracer(recipe.log.profile if topology.rank == 0 else (), run, device)
        self._chance = recipe.head.margin.loss_of_guessing(max(2, manifest.identities))
        self._stall = StallWatch(self._chance, recipe.log.stall_steps)
        assert recipe.data.streams is not None, "a number was put there"
        self.order = Order(
            shards.samples_per_tar, recipe.seed, recipe.data.global_batch, recipe.data.streams, recipe.data.window
        )
        degrees = recipe.log.suspect_degrees if topology.rank == 0 else None
        self._suspects = None if degrees is None else Suspects(run, shards, self.order, degrees)
        # Right before the backbone, whose initial weights are all that is drawn from torch's own generator: every rank
        # draws the same, and DeepSpeed, which would send rank 0's, changes nothing.
        torch.manual_seed(recipe.seed)
        with backbone_faults(recipe.backbone):
            backbone = recipe.backbone.build(size).to(device)
            freeze(backbone, recipe.backbone.frozen)
            if recipe.backbone.batch_norm == "synchronised":
                batch_norm.synchronise(backbone, group)
            if recipe.backbone.activation_checkpointing:
                recompute(recipe.backbone.blocks(backbone))
        # From here on there are collectives, so every rank must come by in this order.
        self._remembered = Remembered(RunFolder(run).undecodable, shards, group)
        sharing, replicas = grid(topology.num_ranks, recipe.head.ranks or topology.num_ranks, recipe.timeout_seconds)
        self.engine = Engine(backbone, recipe, group)
        self.head = ShardedHead(
            manifest.identities,
            recipe.backbone.embedding_dim,
            recipe.head.margin_at(0),
            sharing,
            replicas=replicas,
            seed=recipe.seed,
            optimizer=recipe.optimizer,
            options=_head_options(recipe),
            device=device,
        )
        if recipe.backbone.compile:
            seconds = self.engine.compile(size)
            if topology.rank == 0:
                logger.info("%s compiled in %.1f s", recipe.backbone.name, seconds)
        # What shares of the possible are taken of; None on a CPU, and on a GPU that is not in the table.
        self._floors: Callable[[float], Floors | None] = lambda _: None
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
            self._floors = cache(partial(floors_of, recipe, manifest.identities, topology.num_ranks, size, name))
        self.stepper = Stepper(self.engine, self.head, recipe, group, replicas, device)
        self.saves = Saves(run, recipe, manifest, self.engine, self.head, group, replicas)

    def resume(self, step: int) -> list[str]:
        """Continue from the checkpoint after `step` steps, written by any number of ranks. All ranks together.

        Returns what has changed since, besides the recipe, a line each. Raises as `Saves.load`.
        """
        changed = self.saves.load(step)
        self.step, self._resumed = step, True
        return changed

    def inherit(self, run: Path, step: int | None, new_rows: str) -> Inherited:
        """Start from another run's backbone and rows; see `pipeline.training.inherit`. All ranks together."""
        decoder = self._decoder(64)
        return inherit(
            self.engine, self.head, self.recipe.backbone, self.shards, decoder, run, step, new_rows, self.group
        )

    def train(self, stop_asked: Callable[[], bool] = lambda: False) -> Iterator[Record]:
        """Run the steps that are left, yielding after each; saves on the way, at the end and when asked to stop.

        A new run is saved before its first step; one that was resumed has the checkpoint that it was resumed from.
        Ranks agree on stopping: one that is asked stops all after the same step.

        Raises:
            NonFiniteError: on every rank, before anything of that step was applied, if `faults` says so.
            ShardError: on every rank, when too many samples cannot be decoded; on this one, when a tar was cut.
            UnsavedError: on every rank, when the first or last save fails. (One in between that fails is logged.)
        """
        if not self._resumed:
            # A folder that cannot be written shows before hours of training, and a roll-back always has a checkpoint.
            self.saves.save_surely(self.step)
        STEP.use(self.device)
        SENT.take(), batch_norm.SENT.take()  # what was sent before belongs to no step
        reader = self.reader()
        try:
            while self.step < self.recipe.optimizer.steps:
                with self._tracer.step(self.step + 1):
                    record = self._one_step(reader, stop_asked)
                yield record
                # Before a roll-back: a run that stops at a bad step has saved without it, or will resume from before.
                if record.stopping:
                    return
                if self._guard.going_back:
                    reader.close()  # first, since it decodes batches of steps that will not be taken
                    self._go_back()
                    reader = self.reader()
        except (NonFiniteError, ShardError, OSError):
            self.saves.end()  # what was saved before this step is good
            raise
        finally:
            reader.close()

    def _one_step(self, reader: Reader, stop_asked: Callable[[], bool]) -> Record:
        """Read, step, look after faults, record, save: in this order, for what each may still change."""
        started = time.perf_counter()
        with STEP.part("data_wait"):
            batch = next(reader)
        lambda_ = self.recipe.head.lambda_at(self.step)
        rate = self.recipe.optimizer.learning_rate_at(self.step, self.recipe.data.global_batch)
        if self.step in self._guard.left_out:
            outcome = self.stepper.leave_out(stop_asked)
        else:
            outcome = self.stepper.take(
                batch,
                self.step,
                lambda_=lambda_,
                learning_rate=rate,
                spike_above=self._guard.threshold,
                stop_asked=stop_asked,
                own_seconds=self._own_seconds,
            )
            if outcome.found:
                self._remembered.add(batch.found, self.step)
                reader.leave_out(self._remembered.samples)
            self._limit.add(batch.undecodable, outcome.undecodable, self.recipe.data.global_batch)
        # While `step` is still the position of the batch: a fault is described, and left out, by that.
        angles = self._look_after(outcome, lambda_, rate)
        if self._suspects is not None:
            self._suspects.put(self.step, outcome)
        self.step += 1
        # Before a save, so that its time and traffic do not count as the step's.
        values = self._measured(outcome, angles, reader)
        seconds, parts = time.perf_counter() - started, STEP.take()
        floors = self._floors(self.recipe.head.sample_rate_at(batch.step))
        if floors is not None and outcome.severity != Severity.LEFT_OUT:
            values = {**values, **shares_of(floors, seconds, parts)}
        record = Record(
            step=self.step,
            epoch=self.step / self.order.steps_per_epoch,
            loss=outcome.loss,
            lambda_=lambda_,
            learning_rate=rate,
            samples=self.recipe.data.global_batch,
            seconds=seconds,
            parts=parts,
            measured=values,
            waited_seconds=self._waited(outcome.slowest_seconds),
            skipped=None if outcome.severity == Severity.GOOD else outcome.severity.name.lower(),
            stopping=outcome.stopping,
        )
        self._own_seconds, self._communication_seconds = record.own_seconds, parts.get("communication", 0.0)
        # Rows that moved without their backbone are no state to save. Nor is what a roll-back is about to leave: it
        # would become the newest checkpoint, to which the run goes back. If the run stops here instead, it is saved:
        # nothing of the bad step was applied.
        if outcome.rows_moved or (self._guard.going_back and not outcome.stopping):
            return record
        last = outcome.stopping or self.step == self.recipe.optimizer.steps
        stall, saved = self.saves.save_if_due(self.step, last=last, good=outcome.severity == Severity.GOOD)
        return replace(record, stall_seconds=stall, saved=saved)

    def _waited(self, slowest_seconds: float) -> float:
        """Of the step before: for the slowest rank, as it is known only now."""
        return min(max(0.0, slowest_seconds - self._own_seconds), self._communication_seconds)

    def _look_after(self, outcome: Outcome, lambda_: float | None, rate: float) -> TargetAngles | None:
        """Let the guard judge the outcome, and log a stall; the target angles, None if the step was left out.

        Raises:
            NonFiniteError: from the guard, on every rank.
        """
        if outcome.severity == Severity.LEFT_OUT:
            return None
        if outcome.severity == Severity.GOOD:
            self._guard.good(outcome.loss)
        else:
            samples = [self.shards.describe(int(sample)) for sample in self.order.batch(self.step)]
            what, facts = fault_of(self.step, outcome, lambda_, rate, samples)
            self._guard.bad(self.step, what, facts, rows_moved=outcome.rows_moved)
        angles = target_angles(outcome.target_cosine_G[outcome.valid_G], self.head.margin)
        words = self._stall.look(self.step, outcome.loss, angles.median, lambda_, self.head.margin)
        if words and self.topology.rank == 0:
            logger.warning("step %d: %s", self.step, words)
        return angles

    def _measured(self, outcome: Outcome, angles: TargetAngles | None, reader: Reader) -> Values:
        """The step's numbers beside a record's own: those of the outcome, and those of the parts of this trainer."""
        undecodable = reader.decode_failures  # once: the reader's thread counts on
        new, self._undecodable = undecodable - self._undecodable, undecodable
        sent = 0 if outcome.severity == Severity.LEFT_OUT else self.engine.sent_bytes
        return {
            **measured(outcome, angles, self._chance),
            **self._memory(),
            "samples_total": self.recipe.data.global_batch / self.topology.num_ranks,
            "decode_failures_total": new,
            "prefetched_batches": reader.ready,
            "communication_bytes_total": {"head": SENT.take(), "backbone": sent + batch_norm.SENT.take()},
            "head_held_bytes": self.head.held_bytes,
        }

    def _memory(self) -> Values:
        """GPU memory by part, of steps that are logged: to ask for it takes longer than the rest of the record."""
        if self.device.type != "cuda" or self.step % self.recipe.log.every:
            return {}
        return memory_by_part(
            head=self.head.held_bytes,
            backbone=self.engine.held_bytes,
            allocated=torch.cuda.max_memory_allocated(self.device),
            reserved=torch.cuda.max_memory_reserved(self.device),
        )

    def _go_back(self) -> None:
        """Load the newest whole checkpoint; the steps to be left out are then passed without being applied."""
        self.saves.saver.wait()  # it may become that checkpoint
        with self.saves.saver.patience("a roll-back"):
            newest = newest_whole(self.run, self.group)
            assert newest is not None, "a run saves before its first step"
            if self.topology.rank == 0:
                batches = sorted(self._guard.left_out)
                logger.warning("rolled back to step %d; batches left out from there: %s", newest, batches)
            self.resume(newest)
        self._guard.going_back = False

    def reader(self) -> Reader:
        """This rank's share of the batches from the current step on; to be closed."""
        data = self.recipe.data
        share = data.global_batch // self.topology.num_ranks
        decoders = [(start, self._decoder(share, augment)) for start, augment in data.augmentations]
        self._undecodable = 0  # a reader counts its own
        return Reader(
            self.shards,
            self.order,
            decoders,
            rank=self.topology.rank,
            num_ranks=self.topology.num_ranks,
            accumulation=data.accumulation,
            first_step=self.step,
            depth=data.prefetch,
            undecodable=self._remembered.samples,
        )

    def _decoder(self, batch_size: int, augment: Sequence[Augmentation] = ()) -> Decoder:
        manifest = self.shards.manifest
        threads = self.recipe.data.decode_threads
        return Decoder(batch_size, manifest.image_height, manifest.image_width, self.device, threads, augment)


def _head_options(recipe: Recipe) -> HeadOptions:
    return HeadOptions(
        dtype=torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32,
        block=recipe.head.block,
        fused_update=recipe.head.fused_update,
        sample_rate=recipe.head.sample_rate_at(0),
        unit_rows=recipe.head.unit_rows,
        accumulation=recipe.data.accumulation,
    )
