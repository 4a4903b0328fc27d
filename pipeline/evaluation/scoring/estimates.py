"""Means over several seeds, with intervals over seeds and people.

Two things vary by chance: the seeds of training, and the people of the pairs. The people are resampled,
the same for every run, so that two arms are compared on the same people; of the seeds there are too few for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.scoring.bootstrap import identity_draws
from pipeline.evaluation.scoring.draws import Draws, of_rates, percentiles
from pipeline.evaluation.scoring.verification import FloatArray, ScoredPairs, attained_tars, kfold_accuracy, roc


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


def accuracy_draws(pairs: ScoredPairs, resamples: int, seed: int = 0) -> Draws:
    """The k-fold accuracy of a run on its scored pairs; runs with the same pairs and `seed` have the same draws."""
    return identity_draws(pairs, lambda drawn: np.array([kfold_accuracy(drawn).mean]), resamples, seed)


def estimate(runs: Mapping[int, Draws], confidence: float = 0.95) -> Estimate:
    """Mean and interval over the runs of one arm, given by seed: the draws of one rate each.

    The interval is that of the mean under the draws of the people, plus the error of a mean of S seeds: the standard
    error of their accuracies times Student's t of S - 1 degrees of freedom, drawn anew for each draw of the people.
    (To resample three seeds would be to trust their extremes: such an interval of 95% holds the truth in 75% of cases.)
    """
    mean, values, interval = _over_seeds(runs, confidence)
    return _estimate(values, of_rates(mean.value_K, interval, mean.units_K, confidence))


def difference(mine: Mapping[int, Draws], base: Mapping[int, Draws], confidence: float = 0.95) -> Estimate | None:
    """`estimate` of how much one arm is above another, over the seeds that both have; None if there is none."""
    common = sorted(mine.keys() & base.keys())
    if not common:
        return None
    _, values, interval = _over_seeds({seed: mine[seed].above(base[seed]) for seed in common}, confidence)
    return _estimate(values, interval)


def _over_seeds(runs: Mapping[int, Draws], confidence: float) -> tuple[Draws, FloatArray, FloatArray]:
    """The mean of the runs, the value of each, by rising seed, and the interval `[1, 2]` over people and seeds."""
    ordered = [runs[seed] for seed in sorted(runs)]
    values = np.concatenate([run.value_K for run in ordered])
    mean = Draws.mean(ordered)
    spread = mean.spread()
    if len(values) > 1:
        error = values.std(ddof=1) / len(values) ** 0.5
        spread += error * np.random.default_rng(0).standard_t(len(values) - 1, size=spread.shape)
    return mean, values, percentiles(spread, confidence)


def _estimate(values: FloatArray, interval: FloatArray) -> Estimate:
    ((low, high),) = interval.tolist()
    return Estimate(tuple(values.tolist()), low, high)


def paired_differences(
    mine: ScoredPairs,
    base: ScoredPairs,
    fars: tuple[float, ...],
    resamples: int,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Estimate]:
    """How much one network is above another on the same pairs: in accuracy, then in TAR at each of `fars`.

    Both are judged under the same draws of the people, so what is hard for both cancels out. Raises ValueError when the
    pairs are not the same.
    """
    for name in ("same", "fold", "identity_a", "identity_b"):
        if not np.array_equal(vars(mine)[name], vars(base)[name]):
            raise ValueError(f"paired difference: got pairs that differ in {name}, wanted the same pairs")

    def rates(drawn: ScoredPairs) -> FloatArray:
        return np.array([kfold_accuracy(drawn).mean, *attained_tars(roc(drawn), fars)])

    gain = identity_draws(mine, rates, resamples, seed).above(identity_draws(base, rates, resamples, seed))
    return estimates(gain, confidence)


def estimates(gain: Draws, confidence: float = 0.95) -> list[Estimate]:
    """The difference of each statistic, given by `Draws.above`, with its interval."""
    measured = np.concatenate([gain.value_K[:, None], gain.differences(confidence)], axis=1).tolist()
    return [Estimate((value,), low, high) for value, low, high in measured]
