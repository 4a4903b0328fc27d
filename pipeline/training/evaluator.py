"""Verification while training: every rank embeds its share of each set with the live backbone, rank 0 judges.

Results are made by the same functions as those of `stages/evaluate.py`, and written to the same place. Training is not
changed: the backbone is in evaluation mode meanwhile, nothing is random, and nothing of the run's state is written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.ranks.collectives import SENT, Group, gather_objects, gather_rows, num_ranks, rank_in
from cluster.stop import one_line
from cluster.stopwatch import STEP
from pipeline.evaluation.embedding.embed import embed, files_of, means_of_runs
from pipeline.evaluation.embedding.trained import digest_of
from pipeline.evaluation.results import Settings, save
from pipeline.evaluation.scoring.rates import Verification
from pipeline.evaluation.scoring.verification import FloatArray
from pipeline.evaluation.sets import VerificationSet, accuracies_of, folder_of, judge, stored
from pipeline.reading.crops import LOOKED_AT, Crop, Size, crop_for
from pipeline.reading.dali import DecodedBatch, Decoder
from pipeline.reading.images import decode_images, read_image
from pipeline.recipe.schema import RecipeError
from pipeline.run.best import Best, write_best
from pipeline.run.checkpoint import complete_steps
from pipeline.training.loop import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found, the same on every rank.

    Attributes:
        step: of the run.
        results: by set, without those that could not be judged.
        faults: why they could not, and which files could not be written, a line each.
        highest: the highest accuracy of the run so far, by set.
        best: what ``RUN/best.json`` now says, if it could be written.
        seconds: how long training stood still.
    """

    step: int
    results: dict[str, Verification]
    faults: list[str]
    highest: dict[str, float]
    best: Best | None
    seconds: float


class _Outcome(NamedTuple):
    """Of one set: the result, if it could be judged, and what failed of judging or writing it."""

    result: Verification | None
    fault: str = ""


class Evaluator:
    """Evaluates the backbone of a trainer. All ranks make one, and call each method together.

    Args:
        trainer: of the run; its backbone is evaluated, results go to its run's folder.
        sets: of the recipe, the same on every rank.
    """

    def __init__(self, trainer: Trainer, sets: Sequence[VerificationSet]) -> None:
        self._trainer, self._sets = trainer, sets
        # Listed once: if an image is removed during the run, every rank still has the same list.
        self._files = {chosen.name: files_of(chosen.images, chosen.pairs) for chosen in sets}
        self._group: Group = trainer.group
        self._first = rank_in(trainer.group) == 0
        manifest, recipe = trainer.shards.manifest, trainer.recipe
        self._resamples = recipe.evaluation.resamples
        size = manifest.image_height, manifest.image_width
        # The same on every rank: all look at the same images.
        self._crops = {chosen.name: self._crop(chosen, size) for chosen in sets}
        self._decoders = {
            name: Decoder(recipe.evaluation.batch_size, *crop.size, trainer.device, recipe.data.decode_threads)
            for name, crop in self._crops.items()
        }

    def check(self) -> None:
        """Decode every image once, before hours of training. One exchange of objects a set.

        Raises:
            RecipeError: on every rank, naming an image that cannot be decoded at the run's size.
        """
        for chosen in self._sets:
            files, _ = self._files[chosen.name]
            bad: list[str] = []
            for part, batch in self._decoded(chosen, self._share(files)):
                bad += _bad(part, batch)
            if words := self._undecodable(chosen, bad):
                raise RecipeError(words)

    def look_back(self) -> None:
        """Write to ``best.json`` what was best up to the trainer's step: a run may resume from before its best."""
        if self._first and self._sets:
            *_, faults = self._settle({})
            for fault in faults:
                logger.warning("%s; training continues", fault)

    def evaluate(self) -> Evaluated:
        """Evaluate every set after the trainer's step, a save of which has begun; what is stored is not done again.

        Collectives, in order: rank 0's buffers to all; for each set the backbone's forward passes, one all-gather of
        features [F, 2D] and three exchanges of objects. A set that cannot be judged costs its result, and a disk that
        takes nothing the files, not the run.
        """
        started = time.perf_counter()
        with STEP.part("evaluation"), self._as_saved():
            parameters = self._trainer.engine.parameters()
            weights = digest_of(parameters) if self._first else ""
            outcomes = {chosen.name: self._outcome(chosen, weights) for chosen in self._sets}
            results = {name: outcome.result for name, outcome in outcomes.items() if outcome.result}
            # The best must be there. All ranks wait: in the exchange below a long save would exhaust the time-out.
            self._trainer.saves.saver.wait()
            settled = self._settle(results) if self._first else None
            highest, best, unsettled = gather_objects(settled, self._group)[0]
        STEP.take(), SENT.take()  # neither time nor traffic of a step
        faults = [outcome.fault for outcome in outcomes.values() if outcome.fault] + unsettled
        return Evaluated(self._trainer.step, results, faults, highest, best, time.perf_counter() - started)

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """Rank 0's buffers on every rank meanwhile: BatchNorm's statistics differ, and a checkpoint holds those."""
        engine = self._trainer.engine
        own = [buffer.cpu() for buffer in engine.module.buffers()] if self._first else None
        engine.keep_buffers()
        try:
            for buffer, saved in zip(engine.module.buffers(), gather_objects(own, self._group)[0], strict=True):
                buffer.copy_(saved)
            yield
        finally:
            engine.restore_buffers()

    def _outcome(self, chosen: VerificationSet, weights: str) -> _Outcome:
        """What came of one set: rank 0's, on every rank."""
        settings = chosen.settings(weights, self._resamples)
        done = stored(self._trainer.run, chosen, self._trainer.step, settings) if self._first else None
        known: Verification | None = gather_objects(done and done.summary.verification, self._group)[0]
        if known is not None:
            return _Outcome(known)
        features, bad = self._features(chosen)
        if words := self._undecodable(chosen, bad):
            return _Outcome(None, words)
        mine = self._judge(chosen, features, settings) if self._first else None
        outcome: _Outcome = gather_objects(mine, self._group)[0]
        return outcome

    def _judge(self, chosen: VerificationSet, features_ND: FloatArray, settings: Settings) -> _Outcome:
        where = f"evaluation.sets.{chosen.name}"
        try:
            evaluation = judge(chosen, features_ND, settings, self._trainer.step)
        except ValueError as error:  # embeddings that are not finite
            return _Outcome(None, f"{where}: {error}")
        result = evaluation.summary.verification
        try:
            save(evaluation, folder_of(self._trainer.run, chosen))
        except OSError as error:
            return _Outcome(result, f"{where}: {one_line(error)}")
        return _Outcome(result)

    def _features(self, chosen: VerificationSet) -> tuple[FloatArray, list[str]]:
        """Features `[N, 2D]` of the set's images, on every rank, and the files of this rank that did not decode."""
        files, counts = self._files[chosen.name]
        bad: list[str] = []

        def pixels() -> Iterator[torch.Tensor]:
            for part, batch in self._decoded(chosen, self._share(files)):
                bad.extend(_bad(part, batch))
                yield self._crops[chosen.name].fit(batch.images)

        own = torch.cat(list(embed(self._trainer.engine.module, pixels())))
        every = gather_rows(own.to(self._trainer.device), self._group)[: len(files)]
        return means_of_runs(every.cpu().numpy(), counts), bad

    def _share(self, files: list[str]) -> list[str]:
        """This rank's run of the files, as long as every other's: under ZeRO 3 each batch is a collective.

        The last ranks fill up theirs with the first files.
        """
        length = -(-len(files) // num_ranks(self._group))
        start = rank_in(self._group) * length
        return [files[i % len(files)] for i in range(start, start + length)]

    def _decoded(self, chosen: VerificationSet, files: list[str]) -> Iterator[tuple[list[str], DecodedBatch]]:
        def read(part: slice) -> list[NDArray[np.uint8]]:
            return [_bytes(chosen.images / file) for file in files[part]]

        for part, batch in decode_images(self._decoders[chosen.name], len(files), read):
            yield files[part], batch

    def _crop(self, chosen: VerificationSet, size: Size) -> Crop:
        """How the set's images become the run's; said if something is done to them."""
        files, _ = self._files[chosen.name]
        crop = crop_for([_bytes(chosen.images / file) for file in files[:LOOKED_AT]], size)
        if self._first and crop.words:
            logger.warning("evaluation.sets.%s: %s", chosen.name, crop.words)
        return crop

    def _undecodable(self, chosen: VerificationSet, bad: list[str]) -> str:
        """The message, on every rank, about the files that some rank could not decode; empty if there are none."""
        every = sorted(set(chain(*gather_objects(bad, self._group))))
        if not every:
            return ""
        crop = self._crops[chosen.name]
        file = chosen.images / every[0]
        more = f" and {len(every) - 1} more" if len(every) > 1 else ""
        return f"evaluation.sets.{chosen.name}: {file}{more}: {crop.fault(_bytes(file))}, wanted {crop.wanted}"

    def _settle(self, results: Mapping[str, Verification]) -> tuple[dict[str, float], Best | None, list[str]]:
        """The highest accuracies so far, the best checkpoint, which ``best.json`` then names, and what failed of that.

        Raises nothing that a disk may do: the other ranks wait for an answer.
        """
        highest, best, faults = {name: found.accuracy.value for name, found in results.items()}, None, []
        try:
            reached = self._reached(results)
            highest = {name: max(values.values()) for name, values in reached.items() if values}
            best = self._best(reached)
            write_best(self._trainer.run, best)
        except OSError as error:
            faults.append(one_line(error))
        return highest, best, faults

    def _reached(self, results: Mapping[str, Verification]) -> dict[str, dict[int, float]]:
        """Accuracies by set and step, up to now: those in the run's folder, and `results`, which may not be there."""
        now = self._trainer.step
        found = {}
        for chosen in self._sets:
            values = accuracies_of(self._trainer.run, chosen)
            found[chosen.name] = {step: value for step, value in values.items() if step <= now}
        for name, result in results.items():
            found[name][now] = result.accuracy.value
        return found

    def _best(self, reached: dict[str, dict[int, float]]) -> Best | None:
        """The most accurate of the complete checkpoints; the earliest of equal ones."""
        name = self._trainer.recipe.best_set
        assert name is not None, "there are sets"
        values = {step: reached[name][step] for step in complete_steps(self._trainer.run) if step in reached[name]}
        if not values:
            return None
        top = max(values, key=lambda step: (values[step], -step))
        return Best(top, name, values[top])


def _bytes(file: Path) -> NDArray[np.uint8]:
    try:
        return read_image(file)
    except ValueError:  # deleted since the start: reported with those that cannot be decoded
        return np.zeros(0, np.uint8)


def _bad(part: list[str], batch: DecodedBatch) -> list[str]:
    return [part[i] for i in batch.bad]
