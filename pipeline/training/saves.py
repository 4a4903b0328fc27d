"""The checkpoints of a run while it trains: what goes into one, when one is due, and what a failed one means."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cluster.ranks.collectives import Group, num_ranks, rank_in
from cluster.ranks.process_group import background_group
from pipeline.head import ShardedHead
from pipeline.recipe.schema import Recipe
from pipeline.run import checkpoint
from pipeline.run.changes import changes_since, fixed_keys
from pipeline.run.checkpoint import CheckpointError, Meta, State
from pipeline.run.folder import RunFolder
from pipeline.run.record import device_name
from pipeline.run.saver import Saved, Saver
from pipeline.shards.format.manifest import Manifest

if TYPE_CHECKING:  # the engine loads DeepSpeed, which takes seconds: a start is checked before
    from pipeline.training.engine import Engine

logger = logging.getLogger(__name__)


class UnsavedError(RuntimeError):
    """The run ends here: its first or its last checkpoint could not be written."""


class Saves:
    """Saves and loads backbone and head. All ranks make one, and call each method together.

    Args:
        run: the run's folder.
        recipe, manifest: when to save, and what the rows are of.
        engine, head: what is saved.
        group: all ranks.
        replicas: the ranks that hold the same rows.

    Attributes:
        saver: what writes them, in the background.
    """

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        manifest: Manifest,
        engine: Engine,
        head: ShardedHead,
        group: Group,
        replicas: Group,
    ) -> None:
        self._run, self._recipe, self._manifest = run, recipe, manifest
        self._engine, self._head, self._group, self._replicas = engine, head, group, replicas
        self._shards_sha256 = manifest.digest  # once: it is over every tar of the set
        self._due = False
        keep = recipe.checkpoint
        self.saver = Saver(run, None if group is None else background_group(), keep.keep, keep.keep_every)

    def state(self) -> State:
        """What a checkpoint holds, as it is now: the live tensors or, under ZeRO, copies by collectives."""
        return State(
            rows_SD=self._head.weight_SD.detach(),
            row_slots=self._head.slots,
            first_class=self._head.classes.start,
            backbone=self._engine.parameters(),
            backbone_slots=self._engine.slots(),
            head_state=self._head.state,
            replica=rank_in(self._replicas),
            num_replicas=num_ranks(self._replicas),
        )

    def load(self, step: int) -> list[str]:
        """Load the checkpoint after `step` steps, written by any number of ranks; what has changed since, a line each.

        Raises:
            CheckpointError: when it cannot be read, or is of other people or another backbone.
            RecipeError: when it is of another order of samples, or of other shards that are not accepted.
        """
        state, now = self.state(), self._meta(step)
        saved = checkpoint.read_meta(RunFolder(self._run).checkpoint(step))
        changed = changes_since(self._run, saved, now, self._recipe)
        checkpoint.load(self._run, step, state, now)
        self._head.rows.loaded()  # a run of before may have had rows of any length
        self._engine.load(state.backbone)
        self._engine.load_slots(state.backbone_slots)
        self.saver.resumed(step)
        self._due = False
        return changed

    def begin(self, step: int, *, drops: bool = True) -> float:
        """Begin to write the checkpoint after `step` steps; the seconds that this held up the caller."""
        self._due = False
        return self.saver.begin(self.state(), self._meta(step), drops=drops)

    def save(self, step: int, *, drops: bool = True) -> Saved:
        """Write the checkpoint after `step` steps, and wait for it. Unless it `drops`, every earlier one stays.

        Raises:
            CheckpointError: on every rank, when it could not be written.
        """
        self.begin(step, drops=drops)
        saved = self.saver.finish()
        assert saved is not None
        if saved.error:
            raise CheckpointError(f"{self._run}: checkpoint of step {saved.step} not written: {saved.error}")
        return saved

    def save_if_due(self, step: int, *, last: bool, good: bool) -> tuple[float | None, Saved | None]:
        """Begin a save if the recipe wants one; wait for the `last`.

        After a step that was not `good`, a save is put off until one is: the numbers of a run in trouble would push out
        those of before. The last is made in any case, and drops nothing then.

        Returns:
            how long the caller stood still for it, None without one; and how a save ended, if one did meanwhile.

        Raises:
            UnsavedError: on every rank, when the last save fails. One in between that fails is logged.
        """
        self._due |= step % self._recipe.checkpoint.every == 0
        now = last or (self._due and good)
        # Saves are written one at a time, so the one before has to end; how it did is reported before the next begins.
        saved = self.saver.finish() if now else self.saver.poll()
        self._report(saved, "Training continues; after a crash now it would resume")
        if not now:
            return None, saved
        started = time.perf_counter()
        if last:
            saved = self.save_surely(step, drops=good)
        else:
            self.begin(step)
        return time.perf_counter() - started, saved

    def end(self) -> None:
        """Wait for the save under way, if any, of a run that ends though no rank is lost: the next start resumes there.

        All ranks together, or those that are left: a save needs no step of theirs. One that fails is logged.
        """
        self._report(self.saver.finish(), "The next start resumes")

    def save_surely(self, step: int, *, drops: bool = True) -> Saved:
        """As `save`, for the first and the last checkpoint, without which the run ends.

        Raises:
            UnsavedError: on every rank, when it could not be written.
        """
        try:
            return self.save(step, drops=drops)
        except CheckpointError as error:
            newest = self.saver.newest()
            then = "starts over" if newest is None else f"resumes from the checkpoint of step {newest}"
            raise UnsavedError(f"{error}. Mend that; the same command then {then}") from None

    def _report(self, saved: Saved | None, then: str) -> None:
        if saved is not None and saved.error is not None and rank_in(self._group) == 0:
            newest = self.saver.newest()
            place = "0 of a new run" if newest is None else newest
            logger.error("checkpoint of step %d not written: %s. %s from step %s", saved.step, saved.error, then, place)

    def _meta(self, step: int) -> Meta:
        return Meta(
            step=step,
            num_classes=self._manifest.identities,
            embedding_dim=self._recipe.backbone.embedding_dim,
            identities_sha256=self._manifest.identities_sha256,
            num_ranks=num_ranks(self._group),
            shards_sha256=self._shards_sha256,
            fixed=fixed_keys(self._recipe),
            threads=torch.get_num_threads(),
            device=device_name(self._head.weight_SD.device),
        )
