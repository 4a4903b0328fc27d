"""Rates as they are reported, each with its interval: the records of JSON files, and verification as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipeline.evaluation.scoring.bootstrap import identity_draws, people_of
from pipeline.evaluation.scoring.verification import (
    FloatArray,
    ScoredPairs,
    attained_tars,
    auc,
    kfold_accuracy,
    roc,
    tar_at_far,
    threshold_at,
)


class Record(BaseModel):
    """Facts that do not change, written to JSON and read back; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(Record):
    """A rate between 0 and 1 with its bootstrap interval."""

    value: float
    low: float
    high: float


class TarAtFar(Record):
    """The true accept rate at a false accept rate, and the lowest score that is accepted; None: no score is."""

    far: float
    tar: Rate
    threshold: float | None


class TpirAtFpir(Record):
    """The true positive identification rate at a false positive identification rate."""

    fpir: float
    tpir: Rate


class Verification(Record):
    """What a verification protocol reports, with intervals over identities.

    Attributes:
        accuracy: mean k-fold accuracy, each fold at the threshold of the others.
        deviation: sample standard deviation of the accuracy over folds.
        folds, thresholds: accuracy and threshold of each fold.
        auc: area under the ROC.
        tar: true accept rates, in the order of the false accept rates given.
        genuine, impostors, identities: how many of each the rates rest on.
        confidence: of every interval.
    """

    accuracy: Rate
    deviation: float
    folds: tuple[float, ...]
    thresholds: tuple[float, ...]
    auc: Rate
    tar: tuple[TarAtFar, ...]
    genuine: int
    impostors: int
    identities: int
    confidence: float


def with_intervals(values: Iterable[float], intervals: FloatArray) -> list[Rate]:
    """`K` values, each with its interval, a row of `[K, 2]`."""
    rates = []
    for value, (low, high) in zip(values, intervals, strict=True):
        rates.append(Rate(value=float(value), low=float(low), high=float(high)))
    return rates


def tars_at(fars: Iterable[float], rates: Iterable[Rate], thresholds: Iterable[float]) -> tuple[TarAtFar, ...]:
    """True accept rates, each with its false accept rate and its threshold, infinite if no score is accepted."""
    found = []
    for far, rate, threshold in zip(fars, rates, thresholds, strict=True):
        found.append(TarAtFar(far=far, tar=rate, threshold=float(threshold) if isfinite(threshold) else None))
    return tuple(found)


def verify(
    pairs: ScoredPairs, fars: tuple[float, ...], resamples: int, seed: int = 0, confidence: float = 0.95
) -> Verification:
    """Every verification rate of `pairs` with its interval.

    Raises ValueError when the impostors cannot resolve one of `fars` (see `verification.require_resolvable`).
    """
    curve, folds = roc(pairs), kfold_accuracy(pairs)
    values = [folds.mean, auc(curve), *(tar_at_far(curve, far) for far in fars)]

    def statistics(drawn: ScoredPairs) -> FloatArray:
        curve = roc(drawn)
        return np.array([kfold_accuracy(drawn).mean, auc(curve), *attained_tars(curve, fars)])

    everybody, twice = people_of(pairs), people_of(pairs.select(pairs.same))
    units = np.array([everybody, everybody, *[twice] * len(fars)])
    intervals = identity_draws(pairs, statistics, resamples, seed, units).rates(confidence)
    accuracy, area, *tars = with_intervals(values, intervals)
    return Verification(
        accuracy=accuracy,
        deviation=folds.deviation,
        folds=tuple(folds.accuracies.tolist()),
        thresholds=tuple(folds.thresholds.tolist()),
        auc=area,
        tar=tars_at(fars, tars, [threshold_at(curve, far) for far in fars]),
        genuine=int(curve.genuine),
        impostors=int(curve.impostors),
        identities=len(np.union1d(pairs.identity_a, pairs.identity_b)),
        confidence=confidence,
    )
