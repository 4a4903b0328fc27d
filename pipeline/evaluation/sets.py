"""A verification set, and judging a network on it: the same for a stage and for a run that is still training."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np

from pipeline.evaluation.protocols.groups import NO_GROUP, Groups
from pipeline.evaluation.protocols.pairs import Pairs, read_pairs
from pipeline.evaluation.results import Centred, Evaluation, Rules, Settings, Summary, load, result_file
from pipeline.evaluation.scoring.angles import class_angles
from pipeline.evaluation.scoring.groups import GroupErrors, errors_by_group
from pipeline.evaluation.scoring.insightface_rules import by_insightface_rules
from pipeline.evaluation.scoring.quality import RejectCurve, reject_curve
from pipeline.evaluation.scoring.rates import Verification, verify
from pipeline.evaluation.scoring.verification import (
    BoolArray,
    FloatArray,
    ScoredPairs,
    centred_kfold,
    cosine_scores,
    require_resolvable,
    resolvable,
    resolvable_fars,
)
from pipeline.files import file_sha256
from pipeline.recipe.schema import Recipe, RecipeError
from pipeline.run.checkpoint import complete_steps, has_reached
from pipeline.run.folder import RunFolder
from pipeline.run.whole import damage


@dataclass(frozen=True)
class VerificationSet:
    """Pairs to verify, read and checked.

    Attributes:
        name: of its results, below ``RUN/evaluations/``.
        images: folder that the pairs' paths are relative to.
        file, sha256: the pairs file and its digest.
        fars: false accept rates that the pairs resolve.
        without: digest of the list of people left out; empty if there are none.
        rules: whose are reported, beside our own.
        groups: of the images, for error rates by group.
    """

    name: str
    images: Path
    file: Path
    sha256: str
    pairs: Pairs
    fars: tuple[float, ...]
    without: str = ""
    rules: Rules = "own"
    groups: Groups | None = None

    def settings(self, weights_sha256: str, resamples: int, seed: int = 0) -> Settings:
        """All that a result depends on, for a network with these weights."""
        return Settings(
            weights_sha256=weights_sha256,
            images=str(self.images.resolve()),
            pairs=str(self.file.resolve()),
            pairs_sha256=self.sha256,
            far=self.fars,
            resamples=resamples,
            seed=seed,
            without_sha256=self.without,
            rules=self.rules,
            groups_sha256=self.groups.sha256 if self.groups else "",
        )

    def compared_by(self, settings: Settings) -> bool:
        """Whether a result with such settings is of these comparisons."""
        own = self.settings("", settings.resamples, settings.seed)
        no_matter = {name: getattr(settings, name) for name in ("weights_sha256", "far", "rules", "groups_sha256")}
        return own.model_copy(update=no_matter) == settings


def read_set(name: str, images: Path, file: Path, fars: Sequence[float] = ()) -> VerificationSet:
    """Read a pairs file, checked whole with its images; `fars` default to the powers of ten that its pairs resolve.

    Raises ValueError naming what is wrong (see `pairs.read_pairs`), or the rate that so few pairs do not resolve.
    """
    pairs = read_pairs(file, images)
    return VerificationSet(name, images, file, file_sha256(file), pairs, _resolved(fars, pairs))


def sets_of(recipe: Recipe) -> tuple[VerificationSet, ...]:
    """The sets that a recipe evaluates while it trains.

    Raises RecipeError naming the set and what is wrong with it.
    """
    found = []
    for name, wanted in recipe.evaluation.sets.items():
        try:
            found.append(read_set(name, wanted.images, wanted.pairs))
        except ValueError as error:
            raise RecipeError(f"evaluation.sets.{name}: {error}") from None
    return tuple(found)


def leave_out(chosen: VerificationSet, people: Collection[str], fars: Sequence[float] = ()) -> VerificationSet:
    """The set without the pairs that show any of `people`, given by their names.

    Raises ValueError if a fold is then without pairs or without a threshold, or a rate is not resolved any more.
    """
    pairs = chosen.pairs.without(people, str(chosen.file))
    digest = hashlib.sha256("\n".join(sorted(people)).encode()).hexdigest()
    return replace(chosen, pairs=pairs, fars=_resolved(fars, pairs), without=digest)


def judge(
    chosen: VerificationSet,
    features_ND: FloatArray,
    settings: Settings,
    step: int,
    network: str = "",
    mirrored: bool = True,
) -> Evaluation:
    """Every rate of the set, given the features of ``pairs.paths``: `[N, 2D]`, image and mirror, if `mirrored`.

    An image with a row of NaN is left out with its pairs. Raises ValueError if a fold is then without pairs or without
    a threshold, or a rate is not resolved any more.
    """
    good: BoolArray = np.asarray(np.isfinite(features_ND).all(axis=1))
    left_out = tuple(compress(chosen.pairs.paths, ~good))
    pairs = chosen.pairs
    if left_out:
        pairs = pairs.among(good, f"{chosen.file}, {len(left_out)} images without features")
        remaining = set(pairs.paths)
        features_ND = features_ND[[path in remaining for path in chosen.pairs.paths]]
    scored = pairs.scored(cosine_scores(features_ND, pairs.a, pairs.b))
    # One broken image must not cost a rate: one that its pairs alone resolved is left out with them.
    fars = resolvable(settings.far, pairs.impostors) if left_out else settings.far
    verified = verify(scored, fars, settings.resamples, settings.seed)
    by_authors = centred_kfold(features_ND, pairs.a, pairs.b, scored)
    by_insightface = None
    if settings.rules == "insightface":
        by_insightface = by_insightface_rules(features_ND, pairs.a, pairs.b, scored, mirrored)
    groups: tuple[GroupErrors, ...] = ()
    without_group = 0
    if chosen.groups:
        groups, without_group = _by_group(chosen.groups, pairs, scored, verified, settings)
    summary = Summary(
        step=step,
        settings=settings,
        verification=verified,
        centred=Centred(accuracy=by_authors.mean, deviation=by_authors.deviation),
        network=network,
        left_out=left_out,
        insightface=by_insightface,
        groups=groups,
        without_group=without_group,
        rejects=_rejects(features_ND, pairs, scored, verified),
    )
    paths = np.array(pairs.paths)
    angles = class_angles(features_ND, pairs.identity, pairs.people)
    return Evaluation(summary, scored, paths[pairs.a], paths[pairs.b], angles)


def _by_group(
    groups: Groups, pairs: Pairs, scored: ScoredPairs, verified: Verification, settings: Settings
) -> tuple[tuple[GroupErrors, ...], int]:
    """Errors by group, and how many images have none."""
    number = groups.numbers(pairs.paths)
    errors = errors_by_group(
        scored, number[pairs.a], number[pairs.b], groups.names, verified.tar, settings.resamples, settings.seed
    )
    return errors, int(np.sum(number == NO_GROUP))


def _rejects(
    features_ND: FloatArray, pairs: Pairs, scored: ScoredPairs, verified: Verification
) -> tuple[RejectCurve, ...]:
    """Error against reject rate at each FAR, with the norm of the features as quality."""
    norms = np.linalg.norm(features_ND, axis=1)
    quality = np.minimum(norms[pairs.a], norms[pairs.b])
    return tuple(reject_curve(scored, quality, tar) for tar in verified.tar)


def folder_of(run: Path, chosen: VerificationSet) -> Path:
    """Where a run keeps its results on the set."""
    return RunFolder(run).evaluations / chosen.name


def stored(run: Path, chosen: VerificationSet, step: int, settings: Settings) -> Evaluation | None:
    """A run's evaluation of `step`; None unless it is whole, of this version, and has these settings and all images.

    (An image that was left out may have been repaired; what is kept of the others makes another look cheap.)
    """
    try:
        found = load(result_file(folder_of(run, chosen), step))
    except ValueError:
        return None
    return found if found.summary.settings == settings and not found.summary.left_out else None


def is_finished(run: Path, recipe: Recipe, sets: Sequence[VerificationSet]) -> bool:
    """Whether a run is trained to its last step, whose checkpoint is whole, and evaluated there on every set."""
    if not has_reached(run, recipe.optimizer.steps):
        return False
    last = complete_steps(run)[-1]
    return all(last in accuracies_of(run, chosen) for chosen in sets) and not damage(RunFolder(run).checkpoint(last))


def accuracies_of(run: Path, chosen: VerificationSet) -> dict[int, float]:
    """K-fold accuracy by step: every evaluation that a run has of these pairs, those of other versions excepted."""
    found = {}
    for file in folder_of(run, chosen).glob("step-*.json"):
        with contextlib.suppress(ValueError):
            summary = Summary.model_validate_json(file.read_bytes())
            if chosen.compared_by(summary.settings):
                found[summary.step] = summary.verification.accuracy.value
    return found


def _resolved(fars: Sequence[float], pairs: Pairs) -> tuple[float, ...]:
    for far in fars:
        require_resolvable(far, pairs.impostors)
    return tuple(fars or resolvable_fars(pairs.impostors))
