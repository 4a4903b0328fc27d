"""Intervals for rates over pairs: the bootstrap that resamples identities, not pairs.

Pairs that share a person are not independent, so resampling pairs gives intervals that are too narrow. Here
the identities are drawn with replacement, and a pair counts as often as its people were drawn: the product of
both counts, or the one identity's count when both images show it.

Sources: Bolle, Ratha, Pankanti, "Error analysis of pattern recognition systems: the subsets bootstrap", CVIU
2004; Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007 (the product of counts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.evaluation.scoring.verification import FloatArray, IntArray, ScoredPairs, attained_tars, roc

# Draws for each wanted resample before the set is called too small; 40 people rarely need a second one.
PATIENCE = 50


def identity_bootstrap(
    pairs: ScoredPairs,
    statistics: Callable[[ScoredPairs], FloatArray],
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> FloatArray:
    """Percentile intervals of `statistics`, a function to `[K]` numbers, as `[K, 2]` (low, high).

    The same seed gives the same interval. Raises ValueError as `identity_draws` does.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"bootstrap: got confidence {confidence}, wanted one between 0 and 1")
    return _percentiles(identity_draws(pairs, statistics, resamples, seed), confidence)


def identity_draws(
    pairs: ScoredPairs, statistics: Callable[[ScoredPairs], FloatArray], resamples: int = 1000, seed: int = 0
) -> FloatArray:
    """`statistics` under each of `B` draws of the identities, `[B, K]`; the draws depend on no score.

    A draw that leaves fewer than two folds, or no pair of one kind, has no accuracy or no ROC and is drawn
    again. Raises ValueError when such draws crowd out all others.
    """
    if resamples < 1:
        raise ValueError(f"bootstrap: got {resamples} resamples, wanted at least 1")
    # Sorted once here, so that the stable sort of every resample is a single pass.
    pairs = pairs.select(np.argsort(-pairs.scores, kind="stable"))
    generator = np.random.default_rng(seed)
    values: list[FloatArray] = []
    for _ in range(PATIENCE * resamples):
        drawn = resample_identities(pairs, generator)
        if _has_every_kind(drawn):
            values.append(statistics(drawn))
        if len(values) == resamples:
            return np.stack(values)
    raise ValueError(
        f"bootstrap: {len(values)} of {PATIENCE * resamples} draws of {_identities(pairs)} identities hold"
        f" pairs of both kinds in two folds, wanted {resamples}: the set is too small for an interval"
    )


def trial_bootstrap(
    identity: IntArray,
    statistics: Callable[[FloatArray], FloatArray],
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> FloatArray:
    """Intervals `[K, 2]` over `M` trials that each concern one identity; `statistics` takes the trials' weights `[M]`.

    A trial counts as often as its identity was drawn.
    """
    people, trial_person = np.unique(identity, return_inverse=True)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = np.bincount(generator.integers(len(people), size=len(people)), minlength=len(people))
        values.append(statistics(drawn[trial_person].astype(np.float64)))
    return _percentiles(np.stack(values), confidence)


def roc_band(pairs: ScoredPairs, fars: FloatArray, resamples: int = 200, seed: int = 0) -> FloatArray:
    """95 % intervals of the TAR at each of `fars`, `[F, 2]`: the band around a ROC, point by point."""

    def tars(drawn: ScoredPairs) -> FloatArray:
        return attained_tars(roc(drawn), fars)

    return identity_bootstrap(pairs, tars, resamples, seed)


def resample_identities(pairs: ScoredPairs, generator: np.random.Generator) -> ScoredPairs:
    """`pairs` with weights from one draw, with replacement, of as many identities as there are."""
    count = _identities(pairs)
    return replace(
        pairs, weight=pair_weights(pairs, np.bincount(generator.integers(count, size=count), minlength=count))
    )


def pair_weights(pairs: ScoredPairs, drawn: IntArray) -> FloatArray:
    """How often each pair counts when identity i was drawn `drawn[i]` times."""
    one, other = drawn[pairs.identity_a], drawn[pairs.identity_b]
    return np.where(pairs.identity_a == pairs.identity_b, one, one * other).astype(np.float64)


def _percentiles(values_BK: FloatArray, confidence: float) -> FloatArray:
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    return np.percentile(values_BK, tails, axis=0).T


def _identities(pairs: ScoredPairs) -> int:
    return int(max(pairs.identity_a.max(), pairs.identity_b.max())) + 1


def _has_every_kind(pairs: ScoredPairs) -> bool:
    """Whether accuracy and ROC exist: both kinds, and two folds if the whole set has them."""
    alive = pairs.weight > 0
    folds, wanted = np.unique(pairs.fold[alive]), min(2, len(np.unique(pairs.fold)))
    return bool(len(folds) >= wanted and 0 < np.count_nonzero(pairs.same[alive]) < np.count_nonzero(alive))
