"""Verification by the rules of InsightFace's `verification.py`, by which most accuracies since 2018 are published.

They differ from ours in four things: features are the sum of image and mirror, folds are ten runs of the pairs in their
order, thresholds lie on a grid of squared distances, 0.01 apart, of which the lowest of the most accurate is taken, and
the deviation over folds has K in its denominator. Beside the accuracy they have VAL, the TAR on each fold at the
threshold whose FAR on the others is 0.001 (interpolated on a grid of 0.001).

Source: recognition/arcface_torch/eval/verification.py of github.com/deepinsight/insightface, after facenet's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.evaluation.scoring.rates import Record
from pipeline.evaluation.scoring.verification import (
    BoolArray,
    FloatArray,
    IntArray,
    ScoredPairs,
    cosine_scores,
    kfold_accuracy,
    unit_rows,
)

FOLDS = 10
FAR = 1e-3
GRID, FINE_GRID = np.arange(0, 4, 0.01), np.arange(0, 4, 0.001)


class InsightFaceResult(Record):
    """What `verification.py` prints, and how its accuracy comes of ours.

    Attributes:
        accuracy, deviation: over the folds.
        thresholds: squared distance of each fold, the lowest that is rejected.
        val, val_deviation, far: mean TAR and FAR over the folds; None if a fold has pairs of one kind only.
        steps: each difference of rules by name, with the accuracy when it is added to those before.
    """

    accuracy: float
    deviation: float
    thresholds: tuple[float, ...]
    val: float | None
    val_deviation: float | None
    far: float | None
    steps: tuple[tuple[str, float], ...]


def by_insightface_rules(
    features_ND: FloatArray, a: IntArray, b: IntArray, pairs: ScoredPairs, mirrored: bool
) -> InsightFaceResult:
    """Judge pairs `a`, `b` of the features, which are those of image and mirror side by side if `mirrored`.

    `pairs` has their kinds, folds and our scores. Raises ValueError for fewer than ten pairs.
    """
    if len(pairs) < FOLDS:
        raise ValueError(f"rules: got {len(pairs)} pairs, wanted at least {FOLDS} for InsightFace's folds")
    steps = [("our rules", kfold_accuracy(pairs).mean)]
    if mirrored:
        width = features_ND.shape[1] // 2
        features_ND = features_ND[:, :width] + features_ND[:, width:]
        pairs = replace(pairs, scores=cosine_scores(features_ND, a, b))
        steps.append(("image and mirror summed", kfold_accuracy(pairs).mean))
    fold = np.repeat(np.arange(FOLDS), [len(part) for part in np.array_split(a, FOLDS)])
    steps.append((f"folds of {FOLDS} runs of pairs", kfold_accuracy(replace(pairs, fold=fold)).mean))
    distance = _squared_distances(features_ND, a, b)
    thresholds, accuracies = grid_accuracy(distance, pairs.same, fold)
    steps.append(("thresholds 0.01 apart", float(accuracies.mean())))
    val = cross_validated_tar(distance, pairs.same, fold)
    return InsightFaceResult(
        accuracy=float(accuracies.mean()),
        deviation=float(accuracies.std()),
        thresholds=tuple(thresholds.tolist()),
        val=None if val is None else float(val[0].mean()),
        val_deviation=None if val is None else float(val[0].std()),
        far=None if val is None else float(val[1].mean()),
        steps=tuple(steps),
    )


def grid_accuracy(distance: FloatArray, same: BoolArray, fold: IntArray) -> tuple[FloatArray, FloatArray]:
    """For each fold the threshold of `GRID` that is most accurate on the others, the lowest of several; accuracy."""
    thresholds, accuracies = [], []
    for number in range(FOLDS):
        mine = fold == number
        accepted = distance[~mine, None] < GRID
        threshold = GRID[np.argmax(np.sum(accepted == same[~mine, None], axis=0))]
        thresholds.append(threshold)
        accuracies.append(np.mean((distance[mine] < threshold) == same[mine]))
    return np.array(thresholds), np.array(accuracies)


def cross_validated_tar(distance: FloatArray, same: BoolArray, fold: IntArray) -> tuple[FloatArray, FloatArray] | None:
    """TAR and FAR on each fold at the others' threshold for `FAR`; None if a fold lacks a kind of pairs."""
    tars, fars = [], []
    for number in range(FOLDS):
        mine = fold == number
        genuine, impostors = mine & same, mine & ~same
        if not genuine.any() or not impostors.any():
            return None
        threshold = _threshold_at_far(distance[~mine & ~same])
        tars.append(np.mean(distance[genuine] < threshold))
        fars.append(np.mean(distance[impostors] < threshold))
    return np.array(tars), np.array(fars)


def _threshold_at_far(impostors: FloatArray) -> float:
    """The threshold of `FAR` between two of the fine grid; 0, which accepts nobody, if the grid does not reach it."""
    rates = np.searchsorted(np.sort(impostors), FINE_GRID, side="left") / len(impostors)
    above = int(np.searchsorted(rates, FAR, side="left"))
    if above == len(rates):
        return 0.0
    below = above - 1  # the first rate is 0, below any FAR
    part = (FAR - rates[below]) / (rates[above] - rates[below])
    return float(FINE_GRID[below] + part * (FINE_GRID[above] - FINE_GRID[below]))


def _squared_distances(features_ND: FloatArray, a: IntArray, b: IntArray) -> FloatArray:
    unit = unit_rows(features_ND)
    return np.array([np.sum(np.square(unit[i] - unit[j])) for i, j in zip(a, b, strict=True)])
