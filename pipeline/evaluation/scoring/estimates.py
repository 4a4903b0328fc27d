"""Means over several seeds, with intervals over seeds and people.

Two things vary by chance: the seeds of training, and the people of the pairs. The people are resampled,
the same for every run, so that two arms are compared on the same people; of the seeds there are too few for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.scoring.bootstrap import identity_draws
from pipeline.evaluation.scoring.verification import FloatArray, ScoredPairs, attained_tars, kfold_accuracy, roc


@dataclass(frozen=True)
class Sample:
    """The accuracy of one run: as measured, and under each of `B` draws of the people, `draws` `[B]`."""

    value: float
    draws: FloatArray


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval.

    Attributes:
        values: of each seed, by rising seed.
        low, high: percentile interval over seeds and people; over people alone for a single seed.
    """

    values: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.values))


def accuracy_sample(pairs: ScoredPairs, resamples: int, seed: int = 0) -> Sample:
    """The k-fold accuracy of a run on its scored pairs; runs with the same pairs and `seed` have the same draws."""
    draws = identity_draws(pairs, lambda drawn: np.array([kfold_accuracy(drawn).mean]), resamples, seed)
    return Sample(kfold_accuracy(pairs).mean, draws[:, 0])


def estimate(runs: Mapping[int, Sample], confidence: float = 0.95) -> Estimate:
    """Mean and interval over the runs of one arm, given by seed.

    The interval is that of the mean under the draws of the people, plus the error of a mean of S seeds: the standard
    error of their accuracies times Student's t of S - 1 degrees of freedom, drawn anew for each draw of the people.
    (To resample three seeds would be to trust their extremes: such an interval of 95% holds the truth in 75% of cases.)
    """
    ordered = [runs[seed] for seed in sorted(runs)]
    values = np.array([run.value for run in ordered])
    means = np.mean([run.draws for run in ordered], axis=0)
    if len(values) > 1:
        error = values.std(ddof=1) / len(values) ** 0.5
        means = means + error * np.random.default_rng(0).standard_t(len(values) - 1, size=len(means))
    low, high = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])
    return Estimate(tuple(values.tolist()), float(low), float(high))


def difference(mine: Mapping[int, Sample], base: Mapping[int, Sample], confidence: float = 0.95) -> Estimate | None:
    """`estimate` of how much one arm is above another, over the seeds that both have; None if there is none.

    The draws give the spread alone, around what was measured: with fewer different people every threshold is worse,
    which costs two arms unequally and is no evidence of their order.
    """
    common = sorted(mine.keys() & base.keys())
    if not common:
        return None
    gains = {}
    for seed in common:
        value, draws = mine[seed].value - base[seed].value, mine[seed].draws - base[seed].draws
        gains[seed] = Sample(value, draws - draws.mean() + value)
    return estimate(gains, confidence)


def paired_differences(
    mine: ScoredPairs,
    base: ScoredPairs,
    fars: tuple[float, ...],
    resamples: int,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Estimate]:
    """How much one network is above another on the same pairs: in accuracy, then in TAR at each of `fars`.

    Both are judged under the same draws of the people, so what is hard for both cancels out. The draws give the spread
    alone, as in `difference`. Raises ValueError when the pairs are not the same.
    """
    for name in ("same", "fold", "identity_a", "identity_b"):
        if not np.array_equal(vars(mine)[name], vars(base)[name]):
            raise ValueError(f"paired difference: got pairs that differ in {name}, wanted the same pairs")

    def rates(drawn: ScoredPairs) -> FloatArray:
        return np.array([kfold_accuracy(drawn).mean, *attained_tars(roc(drawn), fars)])

    value_K = rates(mine) - rates(base)
    draws_BK = identity_draws(mine, rates, resamples, seed) - identity_draws(base, rates, resamples, seed)
    spread_BK = draws_BK - draws_BK.mean(axis=0) + value_K
    low_K, high_K = np.percentile(spread_BK, [50 * (1 - confidence), 50 * (1 + confidence)], axis=0)
    measured = np.stack([value_K, low_K, high_K], axis=1).tolist()
    return [Estimate((value,), low, high) for value, low, high in measured]
