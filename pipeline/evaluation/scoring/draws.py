"""From the draws of a bootstrap over people to the interval around what was measured.

The percentiles of the draws are not that interval, for three reasons:

- A draw holds fewer different people, so its thresholds are worse and its k-fold accuracy is lower. That shift is no
  evidence about the network: the draws give the spread alone, around what was measured.
- A pair of two people weighs the product of their counts. Its own chance is then counted three times (Owen, "The
  pigeonhole bootstrap", Annals of Applied Statistics 2007, section 4), and the interval of pairs that share few people
  is up to 1.7 times too wide. The draws of the pairs one by one measure that chance, and two parts of it are taken off.
- At 0 and 1 no draw differs from what was measured. There the interval is the exact one of as many independent trials
  as there are people (Clopper and Pearson, Biometrika 1934), who need not be alike in weight (Kish, "Survey Sampling",
  1965: their effective number).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NO_PAIRS = 1  # draws of the pairs, all alike, if pairs of two people play no part


@dataclass(frozen=True)
class Draws:
    """`K` statistics as measured, and under draws.

    Attributes:
        value_K: as measured.
        people_BK: under each of `B` draws of the people.
        pairs_AK: under each of `A` draws of the pairs of two people, one by one.
        units_K: how many independent people each statistic rests on.
    """

    value_K: FloatArray
    people_BK: FloatArray
    pairs_AK: FloatArray
    units_K: FloatArray

    @classmethod
    def of_trials(cls, value_K: FloatArray, people_BK: FloatArray, units: float) -> Draws:
        """Draws of statistics over trials that concern one person each."""
        none = np.broadcast_to(value_K, (NO_PAIRS, len(value_K)))
        return cls(value_K, people_BK, none, np.full(len(value_K), units))

    @classmethod
    def mean(cls, several: Sequence[Draws]) -> Draws:
        """The mean of the same statistics of several runs, under the same draws."""
        return cls(*(np.mean([getattr(draws, field.name) for draws in several], axis=0) for field in fields(cls)))

    def take(self, places: Sequence[int]) -> Draws:
        """Some of the statistics, by their places."""
        return Draws(*(getattr(self, field.name)[..., list(places)] for field in fields(self)))

    def above(self, base: Draws) -> Draws:
        """How much these statistics are above another run's, under the same draws."""
        return Draws(
            self.value_K - base.value_K,
            self.people_BK - base.people_BK,
            self.pairs_AK - base.pairs_AK,
            self.units_K,
        )

    def spread(self) -> FloatArray:
        """`[B, K]`: what might have been measured, around what was."""
        total_K, surplus_K = self.people_BK.var(axis=0), 2 * self.pairs_AK.var(axis=0)
        share_K = np.divide(surplus_K, total_K, out=np.zeros_like(total_K), where=total_K > 0)
        narrowed_K = np.sqrt(1 - np.minimum(share_K, 2 / 3))  # what is counted thrice is two thirds too much
        return np.asarray(self.value_K + narrowed_K * (self.people_BK - self.people_BK.mean(axis=0)))

    def differences(self, confidence: float = 0.95) -> FloatArray:
        """Intervals `[K, 2]` of differences, which have no bounds."""
        return percentiles(self.spread(), confidence)

    def rates(self, confidence: float = 0.95) -> FloatArray:
        """Intervals `[K, 2]` of rates between 0 and 1."""
        return of_rates(self.value_K, self.differences(confidence), self.units_K, confidence)


def percentiles(values_BK: FloatArray, confidence: float) -> FloatArray:
    """The interval `[K, 2]` that leaves equal tails of the draws outside; ValueError for no confidence."""
    if not 0 < confidence < 1:
        raise ValueError(f"bootstrap: got confidence {confidence}, wanted one between 0 and 1")
    return np.percentile(values_BK, [50 * (1 - confidence), 50 * (1 + confidence)], axis=0).T


def of_rates(value_K: FloatArray, interval_K2: FloatArray, units_K: FloatArray, confidence: float) -> FloatArray:
    """Intervals `[K, 2]` within 0 and 1, and at least the exact ones for rates that are 0 or 1."""
    low_K, high_K = np.clip(interval_K2, 0, 1).T
    least_K = ((1 - confidence) / 2) ** (1 / units_K)  # of a rate that is 1 in so many trials
    low_K = np.where(value_K == 1, np.minimum(low_K, least_K), low_K)
    high_K = np.where(value_K == 0, np.maximum(high_K, 1 - least_K), high_K)
    return np.stack([low_K, high_K], axis=1)


def effective_people(identity: IntArray) -> float:
    """The people of trials, as many as would weigh the same if all had equally many; `identity` is of each trial."""
    counts = np.unique(identity, return_counts=True)[1].astype(np.float64)
    return float(counts.sum() ** 2 / (counts**2).sum())
