"""One-to-one verification: scored pairs to k-fold accuracy, ROC, TAR at FAR. Pure numpy, float64.

A pair is accepted when its score is at least the threshold. Every function honours the pairs' weights as if a
pair of weight n stood there n times, which is all that a bootstrap needs.

Sources: Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild", UMass TR 07-49, 2007, section on
View 2 (k-fold accuracy); Liu et al., "SphereFace", CVPR 2017, section 4 (cosine of concatenated features).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

PAIRS_AT_ONCE = 4096  # whose features are side by side in memory: 64 MiB at 1,024 dimensions


@dataclass(frozen=True)
class ScoredPairs:
    """`P` pairs of images with their similarity, all arrays of length `P`.

    Attributes:
        scores: similarity, higher means more alike.
        same: whether both images show one identity (a genuine pair) or two (an impostor pair).
        fold: the fold of each pair, 0, 1, ...
        identity_a, identity_b: the identity of each image, 0, 1, ...
        weight: how often the pair counts; 1 outside a bootstrap.
    """

    scores: FloatArray
    same: BoolArray
    fold: IntArray
    identity_a: IntArray
    identity_b: IntArray
    weight: FloatArray

    @classmethod
    def of(
        cls, scores: Any, same: Any, fold: Any, *, identity_a: Any, identity_b: Any, weight: Any = None
    ) -> ScoredPairs:
        """Build from array-likes; raises ValueError on unequal lengths or a score that is not finite."""
        scores = np.asarray(scores, np.float64)
        weight = np.ones(len(scores)) if weight is None else np.asarray(weight, np.float64)
        pairs = cls(
            scores,
            np.asarray(same, bool),
            np.asarray(fold, np.int64),
            np.asarray(identity_a, np.int64),
            np.asarray(identity_b, np.int64),
            weight,
        )
        lengths = {name: len(array) for name, array in vars(pairs).items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"scored pairs: got lengths {lengths}, wanted them equal")
        if not np.isfinite(scores).all():
            raise ValueError(f"scores: got {np.sum(~np.isfinite(scores))} that are not finite, wanted none")
        return pairs

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, keep: BoolArray | IntArray) -> ScoredPairs:
        """The pairs at `keep`, a mask or positions."""
        return replace(self, **{name: array[keep] for name, array in vars(self).items()})


@dataclass(frozen=True)
class Roc:
    """Receiver operating characteristic: one point for each distinct score, from (0, 0) up to (1, 1).

    Attributes:
        far: accepted impostor pairs / impostor pairs, ascending.
        tar: accepted genuine pairs / genuine pairs, ascending.
        thresholds: the lowest accepted score at each point; infinite at (0, 0).
        genuine, impostors: how many pairs (weight) of each kind there are.
    """

    far: FloatArray
    tar: FloatArray
    thresholds: FloatArray
    genuine: float
    impostors: float


@dataclass(frozen=True)
class KFold:
    """Accuracy by fold with the threshold of the other folds; NaN for a fold without weight."""

    accuracies: FloatArray
    thresholds: FloatArray

    @property
    def mean(self) -> float:
        """Mean accuracy over folds: the figure that papers report for LFW."""
        return float(np.nanmean(self.accuracies))

    @property
    def deviation(self) -> float:
        """Sample standard deviation over folds, with K - 1 in the denominator as in the LFW report."""
        return float(np.nanstd(self.accuracies, ddof=1))


def cosine_scores(features_ND: NDArray[Any], a: IntArray, b: IntArray) -> FloatArray:
    """Cosine similarity of rows `a[i]` and `b[i]` of the features `[N, D]`, as `[P]` float64.

    A row of zeros, as a collapsed network gives it, is like nothing: its cosines are 0. Pairs are taken a block at a
    time, so memory beside the result is that of the features, whatever the number of pairs. Raises ValueError naming
    the first row that is not finite.
    """
    unit = unit_rows(features_ND)
    scores = np.empty(len(a))
    for start in range(0, len(a), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        np.einsum("pd,pd->p", unit[a[part]], unit[b[part]], out=scores[part])
    return scores


def unit_rows(features_ND: NDArray[Any]) -> FloatArray:
    """The rows of the features `[N, D]` at length 1, rows of zeros excepted; raises as `cosine_scores`."""
    unit = np.array(features_ND, np.float64)
    for start in range(0, len(unit), PAIRS_AT_ONCE):
        rows = unit[start : start + PAIRS_AT_ONCE]
        norms = np.linalg.norm(rows, axis=1)
        broken = np.flatnonzero(~np.isfinite(norms))
        if len(broken):
            raise ValueError(
                f"features: {len(broken)} rows are not finite, the first is row {start + broken[0]} with norm"
                f" {norms[broken[0]]}, wanted finite ones"
            )
        rows /= np.where(norms > 0, norms, 1)[:, None]
    return unit


def roc(pairs: ScoredPairs) -> Roc:
    """The ROC of `pairs`; raises ValueError when either kind is missing."""
    scores, genuine, impostors = _accepted(pairs)
    if genuine[-1] == 0 or impostors[-1] == 0:
        raise ValueError(f"ROC: got {genuine[-1]:g} same and {impostors[-1]:g} different pairs, wanted some of each")
    return Roc(
        far=impostors / impostors[-1],
        tar=genuine / genuine[-1],
        thresholds=scores,
        genuine=float(genuine[-1]),
        impostors=float(impostors[-1]),
    )


def auc(curve: Roc) -> float:
    """Area under the ROC by trapezoids: the chance that a genuine pair outscores an impostor, ties half."""
    return float(np.sum(np.diff(curve.far) * (curve.tar[1:] + curve.tar[:-1]) / 2))


def equal_error_rate(curve: Roc) -> float:
    """Where FAR and FRR (1 - TAR) meet, by linear interpolation between the two points of the ROC around it."""
    gap = curve.far + curve.tar - 1  # FAR - FRR, rising from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = after - 1
    part = -gap[before] / (gap[after] - gap[before])
    return float(curve.far[before] + part * (curve.far[after] - curve.far[before]))


def require_resolvable(rate: float, attempts: float, name: str = "far", of: str = "different pairs") -> None:
    """Raise ValueError when `rate` lies below the smallest rate above zero that so many impostor attempts can show.

    `name` and `of` are what the error calls the rate and the attempts.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"{name}: got {rate:g}, wanted above 0 and at most 1")
    if not resolvable((rate,), attempts):
        raise ValueError(
            f"{name}: got {rate:g} with {attempts:g} {of}, which resolve no rate below"
            f" {1 / max(attempts, 1):.2g}; wanted at least {int(np.ceil(1 / rate - 1e-9))} {of}"
        )


def resolvable(rates: Sequence[float], attempts: float) -> tuple[float, ...]:
    """Those of `rates` that so many impostor attempts can show."""
    return tuple(rate for rate in rates if rate * attempts >= 1 - 1e-9)  # 1/49 × 49 falls a rounding short of 1


def resolvable_fars(impostors: float) -> tuple[float, ...]:
    """The powers of ten from 0.1 down to 1e-6 that so many impostors resolve; none of fewer than 10."""
    return resolvable((1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6), impostors)


def tar_at_far(curve: Roc, far: float) -> float:
    """The highest TAR whose FAR does not exceed `far`, never interpolated: some threshold attains it.

    Raises ValueError when the impostors cannot resolve `far` (see `require_resolvable`).
    """
    require_resolvable(far, curve.impostors)
    return attained_tar(curve, far)


def attained_tar(curve: Roc, far: float) -> float:
    """`tar_at_far` without its refusal, for a bootstrap of a curve that has passed it."""
    return float(attained_tars(curve, [far])[0])


def attained_tars(curve: Roc, fars: Sequence[float] | FloatArray) -> FloatArray:
    """`attained_tar` of each of `fars`, `[F]`."""
    return np.asarray(curve.tar[np.searchsorted(curve.far, fars, side="right") - 1])


def threshold_at(curve: Roc, far: float) -> float:
    """The threshold at which `attained_tar` is attained: the lowest score that is accepted, infinite if none is."""
    return float(curve.thresholds[np.searchsorted(curve.far, far, side="right") - 1])


def best_threshold(pairs: ScoredPairs) -> float:
    """The threshold of highest accuracy: midway between the two neighbouring scores that it separates.

    Of several equally accurate thresholds the highest is taken, the one that admits fewest impostors.
    """
    scores, genuine, impostors = _accepted(pairs)
    point = int(np.argmax(genuine - impostors))  # accuracy up to constants; the first is the highest threshold
    if point == 0:
        return float(np.nextafter(scores[1], np.inf))  # accepts nothing
    if point == len(scores) - 1:
        return float(scores[-1])  # accepts everything
    midway = scores[point] / 2 + scores[point + 1] / 2
    # Between two adjacent floats the midpoint may round onto the rejected one.
    return float(max(midway, np.nextafter(scores[point + 1], np.inf)))


def kfold_accuracy(pairs: ScoredPairs) -> KFold:
    """Accuracy on each fold, at the `best_threshold` of all the other folds (LFW, View 2).

    Raises ValueError when fewer than two folds hold pairs.
    """
    count = int(pairs.fold.max()) + 1 if len(pairs) else 0
    filled = np.bincount(pairs.fold, pairs.weight, minlength=count) > 0
    if filled.sum() < 2:
        raise ValueError(f"folds: got {filled.sum()} with pairs, wanted at least 2")
    accuracies, thresholds = np.full(count, np.nan), np.full(count, np.nan)
    for fold in np.flatnonzero(filled):
        mine = pairs.fold == fold
        thresholds[fold] = best_threshold(pairs.select(~mine))
        correct = (pairs.scores[mine] >= thresholds[fold]) == pairs.same[mine]
        accuracies[fold] = np.average(correct, weights=pairs.weight[mine])
    return KFold(accuracies, thresholds)


def centred_kfold(features_ND: NDArray[Any], a: IntArray, b: IntArray, pairs: ScoredPairs) -> KFold:
    """K-fold accuracy with the other folds' mean feature subtracted before the cosine.

    This is what the authors' published `evaluation.m` does, and the paper does not say: for each fold the mean over
    both sides of the pairs of the other folds. `pairs` gives kinds, folds and weights; its scores are not used.
    """
    features = np.asarray(features_ND, np.float64)
    accuracies, thresholds = [], []
    for fold in range(int(pairs.fold.max()) + 1):
        others = pairs.fold != fold
        mean = np.mean(features[np.concatenate([a[others], b[others]])], axis=0)
        result = kfold_accuracy(replace(pairs, scores=cosine_scores(features - mean, a, b)))
        accuracies.append(result.accuracies[fold])
        thresholds.append(result.thresholds[fold])
    return KFold(np.array(accuracies), np.array(thresholds))


def _accepted(pairs: ScoredPairs) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weight of accepted genuine and impostor pairs as the threshold falls through each distinct score.

    Entry 0 stands for a threshold above every score. Pairs without weight take no part.
    """
    order = np.argsort(-pairs.scores, kind="stable")
    order = order[pairs.weight[order] > 0]
    scores, same, weight = pairs.scores[order], pairs.same[order], pairs.weight[order]
    # Equal scores are accepted together, so only the last of each tie is a point.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], len(scores) > 0))
    genuine = np.cumsum(weight * same)[last]
    impostors = np.cumsum(weight * ~same)[last]
    return (
        np.concatenate([[np.inf], scores[last]]),
        np.concatenate([[0.0], genuine]),
        np.concatenate([[0.0], impostors]),
    )
