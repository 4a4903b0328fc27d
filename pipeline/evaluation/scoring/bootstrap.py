"""The bootstrap for rates over pairs: it draws identities, not pairs.

Pairs that share a person are not independent, so drawing pairs gives intervals that are too narrow. Here
the identities are drawn with replacement, and a pair counts as often as its people were drawn: the product of
both counts, or the one identity's count when both images show it. `draws` makes intervals of that.

Sources: Bolle, Ratha, Pankanti, "Error analysis of pattern recognition systems: the subsets bootstrap", CVIU
2004; Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007 (the product of counts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pipeline.evaluation.scoring.draws import Draws, effective_people
from pipeline.evaluation.scoring.verification import (
    BoolArray,
    FloatArray,
    IntArray,
    ScoredPairs,
    attained_tars,
    roc,
)

# Draws for each wanted resample before the set is called too small; 40 people rarely need a second one.
PATIENCE = 50
PAIR_DRAWS = 100  # at most: their variance alone is wanted, and they give it to a seventh

Statistics = Callable[[ScoredPairs], FloatArray]


def identity_draws(
    pairs: ScoredPairs, statistics: Statistics, resamples: int = 1000, seed: int = 0, units: FloatArray | None = None
) -> Draws:
    """`statistics`, a function to `[K]` numbers, as measured and under draws that depend on no score.

    A draw that leaves fewer than two folds, or no pair of a kind that there is, has no accuracy or no ROC and is drawn
    again. `units` `[K]` is how many independent people each statistic rests on (default: those of all pairs). Raises
    ValueError when such draws crowd out all others.
    """
    if resamples < 1:
        raise ValueError(f"bootstrap: got {resamples} resamples, wanted at least 1")
    # Sorted once here, so that the stable sort of every resample is a single pass.
    order = np.argsort(-pairs.scores, kind="stable")
    falling = pairs.select(order)
    people_BK = _of_people(falling, statistics, resamples, seed)
    value_K = statistics(pairs)
    return Draws(
        value_K,
        people_BK,
        _of_pairs(falling, order, statistics, min(resamples, PAIR_DRAWS), seed),
        np.full(len(value_K), people_of(pairs)) if units is None else units,
    )


def _of_people(pairs: ScoredPairs, statistics: Statistics, resamples: int, seed: int) -> FloatArray:
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


def _of_pairs(falling: ScoredPairs, order: IntArray, statistics: Statistics, resamples: int, seed: int) -> FloatArray:
    """Under draws of the pairs of two people, one by one, in the order that they had before they were sorted."""
    generator = pair_generator(seed)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    several = place[falling.identity_a[place] != falling.identity_b[place]]
    values = []
    for _ in range(resamples):
        weight = np.ones(len(falling))
        weight[several] = draw_pairs(len(several), generator)
        values.append(statistics(replace(falling, weight=weight)))
    return np.stack(values)


def pair_generator(seed: int) -> np.random.Generator:
    """The generator for draws of the pairs, apart from that of the people."""
    return np.random.default_rng((seed, 1))


def draw_pairs(count: int, generator: np.random.Generator) -> IntArray:
    """How often each of `count` pairs is drawn, `[count]`, in as many draws with replacement."""
    return np.bincount(generator.integers(count, size=count), minlength=count)


def trial_draws(
    identity: IntArray, statistics: Callable[[FloatArray], FloatArray], resamples: int = 1000, seed: int = 0
) -> Draws:
    """`statistics` of the weights `[M]` of `M` trials that each concern one identity, as measured and under draws.

    A trial counts as often as its identity was drawn.
    """
    people, trial_person = np.unique(identity, return_inverse=True)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = np.bincount(generator.integers(len(people), size=len(people)), minlength=len(people))
        values.append(statistics(drawn[trial_person].astype(np.float64)))
    return Draws.of_trials(statistics(np.ones(len(identity))), np.stack(values), effective_people(identity))


def roc_band(pairs: ScoredPairs, fars: FloatArray, resamples: int = 200, seed: int = 0) -> FloatArray:
    """95 % intervals of the TAR at each of `fars`, `[F, 2]`: the band around a ROC, point by point."""

    def tars(drawn: ScoredPairs) -> FloatArray:
        return attained_tars(roc(drawn), fars)

    units = np.full(len(fars), people_of(pairs.select(pairs.same)))
    return identity_draws(pairs, tars, resamples, seed, units).rates()


def people_of(pairs: ScoredPairs) -> float:
    """How many independent people the pairs rest on."""
    return effective_people(np.concatenate([pairs.identity_a, pairs.identity_b]))


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


def _identities(pairs: ScoredPairs) -> int:
    return int(max(pairs.identity_a.max(), pairs.identity_b.max())) + 1


def _has_every_kind(pairs: ScoredPairs) -> bool:
    """Whether accuracy and ROC exist as they do of the whole set: the same kinds, and two folds if it has them."""
    alive: BoolArray = pairs.weight > 0
    folds, wanted = np.unique(pairs.fold[alive]), min(2, len(np.unique(pairs.fold)))
    kinds = np.unique(pairs.same[alive])
    return len(folds) >= wanted and np.array_equal(kinds, np.unique(pairs.same))
