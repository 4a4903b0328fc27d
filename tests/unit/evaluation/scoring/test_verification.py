"""Verification rates against slow references that share no code with them, and against scikit-learn."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from pipeline.evaluation.scoring.verification import (
    ScoredPairs,
    attained_tar,
    auc,
    best_threshold,
    centred_kfold,
    cosine_scores,
    equal_error_rate,
    kfold_accuracy,
    require_resolvable,
    roc,
    tar_at_far,
)


def make_pairs(seed: int, count: int = 60, folds: int = 3, levels: int | None = 12) -> ScoredPairs:
    """Random pairs; few score levels make many ties."""
    generator = np.random.default_rng(seed)
    same = np.arange(count) % 2 == 0
    scores = generator.normal(same * 0.8, 1)
    if levels:
        scores = np.round(scores * levels / 4) / levels
    fold = (np.arange(count) // 2) % folds
    return scored(scores, same, fold)


def scored(scores: Any, same: Any, fold: Any, weight: Any = None) -> ScoredPairs:
    """Pairs whose identities play no part."""
    nobody = np.zeros(len(scores), int)
    return ScoredPairs.of(scores, same, fold, identity_a=nobody, identity_b=nobody, weight=weight)


@st.composite
def any_pairs(draw: st.DrawFn) -> ScoredPairs:
    return make_pairs(draw(st.integers(0, 10_000)), draw(st.integers(6, 40)), 3, draw(st.sampled_from([2, 5, None])))


def slow_accuracy(scores: list[float], same: list[bool], threshold: float) -> float:
    return sum((s >= threshold) == t for s, t in zip(scores, same, strict=True)) / len(scores)


def slow_threshold(scores: list[float], same: list[bool]) -> float:
    """Try a threshold in every gap, from the highest down, and keep the first of the best."""
    levels = sorted(set(scores), reverse=True)
    gaps = [levels[0] + 1, *[(a + b) / 2 for a, b in pairwise(levels)], levels[-1]]
    best = max(slow_accuracy(scores, same, gap) for gap in gaps)
    return next(gap for gap in gaps if slow_accuracy(scores, same, gap) == best)


def test_cosine_scores_equal_a_loop_in_float64() -> None:
    features = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    a, b = np.array([0, 3, 6]), np.array([1, 4, 6])
    for score, i, j in zip(cosine_scores(features, a, b), a, b, strict=True):
        x, y = [float(v) for v in features[i]], [float(v) for v in features[j]]
        dot = sum(p * q for p, q in zip(x, y, strict=True))
        norms = sum(p * p for p in x) ** 0.5 * sum(q * q for q in y) ** 0.5
        assert score == pytest.approx(dot / norms, abs=1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_is_refused_by_row(bad: float) -> None:
    features = np.ones((3, 4))
    features[1] = bad
    with pytest.raises(ValueError, match=r"1 rows are not finite, the first is row 1 .* wanted finite ones"):
        cosine_scores(features, np.array([0]), np.array([2]))


def test_a_feature_without_direction_is_like_nothing() -> None:
    """A collapsed network is judged at 50%, not refused."""
    features = np.ones((3, 4))
    features[1] = 0
    np.testing.assert_array_equal(cosine_scores(features, np.array([0, 0, 1]), np.array([2, 1, 1])), [1, 0, 0])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [3, 12, None])
def test_roc_and_auc_equal_scikit_learn(seed: int, levels: int | None) -> None:
    pairs = make_pairs(seed, levels=levels)
    curve = roc(pairs)
    far, tar, thresholds = roc_curve(pairs.same, pairs.scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.far, far, atol=1e-15)
    np.testing.assert_allclose(curve.tar, tar, atol=1e-15)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    assert auc(curve) == pytest.approx(roc_auc_score(pairs.same, pairs.scores), abs=1e-14)


@settings(deadline=None)
@given(any_pairs())
def test_auc_is_the_chance_that_a_genuine_pair_outscores_an_impostor(pairs: ScoredPairs) -> None:
    genuine, impostor = pairs.scores[pairs.same], pairs.scores[~pairs.same]
    wins = sum((g > i) + 0.5 * (g == i) for g in genuine for i in impostor)
    assert auc(roc(pairs)) == pytest.approx(wins / (len(genuine) * len(impostor)), abs=1e-12)


@settings(deadline=None)
@given(any_pairs(), st.sampled_from([0.05, 0.1, 0.2, 0.5, 1.0]))
def test_tar_at_far_equals_trying_every_threshold(pairs: ScoredPairs, far: float) -> None:
    genuine, impostor = pairs.scores[pairs.same], pairs.scores[~pairs.same]
    best = 0.0
    for threshold in [*pairs.scores, np.inf]:
        if np.sum(impostor >= threshold) <= far * len(impostor) + 1e-9:
            best = max(best, float(np.mean(genuine >= threshold)))
    assert attained_tar(roc(pairs), far) == best


@settings(deadline=None)
@given(any_pairs(), st.sampled_from([np.exp, np.arctan, lambda s: 3 * s - 7]))
def test_an_increasing_transform_of_the_scores_leaves_the_roc(pairs: ScoredPairs, transform: Any) -> None:
    before, after = roc(pairs), roc(scored(transform(pairs.scores), pairs.same, pairs.fold))
    np.testing.assert_array_equal(before.far, after.far)
    np.testing.assert_array_equal(before.tar, after.tar)


@settings(deadline=None)
@given(any_pairs())
def test_weights_count_as_repetition(pairs: ScoredPairs) -> None:
    """The law that a bootstrap rests on: ROC, threshold and accuracy see copies, and nothing else."""
    copies = np.random.default_rng(len(pairs)).integers(0, 4, size=len(pairs))
    copies[:12] = np.maximum(copies[:12], 1)  # both kinds stay in every fold
    weighted = scored(pairs.scores, pairs.same, pairs.fold, weight=copies)
    repeated = pairs.select(np.repeat(np.arange(len(pairs)), copies)) if len(pairs) >= 12 else weighted
    one, other = roc(weighted), roc(repeated)
    np.testing.assert_array_equal(one.far, other.far)
    np.testing.assert_array_equal(one.tar, other.tar)
    assert best_threshold(weighted) == best_threshold(repeated)
    np.testing.assert_allclose(kfold_accuracy(weighted).accuracies, kfold_accuracy(repeated).accuracies, atol=1e-15)


@settings(deadline=None)
@given(any_pairs())
def test_best_threshold_equals_trying_every_gap(pairs: ScoredPairs) -> None:
    expected = slow_threshold(pairs.scores.tolist(), pairs.same.tolist())
    found = best_threshold(pairs)
    if expected > pairs.scores.max():
        assert found > pairs.scores.max()
    else:
        assert found == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_kfold_equals_a_slow_reference(seed: int) -> None:
    pairs = make_pairs(seed, count=90, folds=5)
    result = kfold_accuracy(pairs)
    rows = list(zip(pairs.scores.tolist(), pairs.same.tolist(), pairs.fold.tolist(), strict=True))
    expected = []
    for fold in range(5):
        train = [(s, t) for s, t, f in rows if f != fold]
        threshold = slow_threshold([s for s, _ in train], [t for _, t in train])
        mine = [(s, t) for s, t, f in rows if f == fold]
        expected.append(slow_accuracy([s for s, _ in mine], [t for _, t in mine], threshold))
    np.testing.assert_allclose(result.accuracies, expected, atol=1e-15)
    mean = sum(expected) / 5
    assert result.mean == pytest.approx(mean, abs=1e-15)
    assert result.deviation == pytest.approx((sum((e - mean) ** 2 for e in expected) / 4) ** 0.5, abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_centred_accuracy_equals_the_authors_script_step_by_step(seed: int) -> None:
    """As evaluation.m: per fold the mean over both sides of the other folds' pairs; subtract, normalise, count."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(30, 4)) + 2.0  # a mean that matters
    a, b = generator.integers(30, size=(2, 60))
    b = np.where(a == b, (b + 1) % 30, b)
    pairs = make_pairs(seed, 60, 3)
    found = centred_kfold(features, a, b, pairs)
    expected = []
    for fold in range(3):
        train = [i for i in range(60) if pairs.fold[i] != fold]
        mean = sum(features[a[i]] + features[b[i]] for i in train) / (2 * len(train))
        scores = []
        for i in range(60):
            x, y = features[a[i]] - mean, features[b[i]] - mean
            scores.append(float(x @ y / np.sqrt(x @ x) / np.sqrt(y @ y)))
        threshold = slow_threshold([scores[i] for i in train], [bool(pairs.same[i]) for i in train])
        test = [i for i in range(60) if pairs.fold[i] == fold]
        expected.append(slow_accuracy([scores[i] for i in test], [bool(pairs.same[i]) for i in test], threshold))
    np.testing.assert_allclose(found.accuracies, expected, atol=1e-12)
    plain = kfold_accuracy(scored(cosine_scores(features, a, b), pairs.same, pairs.fold))
    assert (found.thresholds != plain.thresholds).all()


def test_the_threshold_of_a_fold_never_sees_that_fold() -> None:
    pairs = make_pairs(0)
    changed = pairs.scores.copy()
    changed[pairs.fold == 1] = -changed[pairs.fold == 1] * 5
    after = scored(changed, pairs.same, pairs.fold)
    assert kfold_accuracy(pairs).thresholds[1] == kfold_accuracy(after).thresholds[1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [3, None])
def test_the_equal_error_rate_lies_where_the_errors_cross(seed: int, levels: int | None) -> None:
    curve = roc(make_pairs(seed, levels=levels))
    fine = np.linspace(0, 1, 200_001)
    # Walk the polygon of (FAR, FRR) at equal arc parameter and find the point nearest the diagonal.
    along = fine * (len(curve.far) - 1)
    far, frr = (np.interp(along, np.arange(len(curve.far)), values) for values in (curve.far, 1 - curve.tar))
    assert equal_error_rate(curve) == pytest.approx(far[np.argmin(np.abs(far - frr))], abs=1e-3)


def test_perfect_scores_and_useless_scores() -> None:
    same = np.arange(40) % 2 == 0
    fold = (np.arange(40) // 2) % 4
    perfect = scored(np.where(same, 0.9, 0.1), same, fold)
    assert kfold_accuracy(perfect).mean == 1
    assert kfold_accuracy(perfect).deviation == 0
    assert best_threshold(perfect) == pytest.approx(0.5)
    assert (auc(roc(perfect)), tar_at_far(roc(perfect), 0.05)) == (1, 1)
    useless = scored(np.full(40, 0.3), same, fold)
    assert kfold_accuracy(useless).mean == 0.5
    assert (auc(roc(useless)), tar_at_far(roc(useless), 0.05)) == (0.5, 0)


def test_a_score_equal_to_the_threshold_is_accepted() -> None:
    """Mostly genuine pairs of one score: accepting everything is best, at that very score."""
    pairs = scored(np.full(9, 0.3), np.arange(9) % 3 > 0, np.arange(9) // 3)
    assert best_threshold(pairs) == 0.3
    assert kfold_accuracy(pairs).mean == pytest.approx(2 / 3)


def test_a_tie_of_accuracies_goes_to_the_highest_threshold() -> None:
    # 0.85 (accepting 0.9 alone) and 0.65 (accepting 0.9, 0.8, 0.7) are both right three times of four.
    pairs = scored([0.9, 0.8, 0.7, 0.6], [True, False, True, False], [0, 0, 1, 1])
    assert best_threshold(pairs) == pytest.approx(0.85)


def test_a_threshold_between_adjacent_floats_still_separates_them() -> None:
    low = 1.0
    for _ in range(50):
        high = np.nextafter(low, 2)
        pairs = scored([high, low], [True, False], [0, 1])
        assert low < best_threshold(pairs) <= high
        low = high


@pytest.mark.parametrize(("far", "impostors"), [(1e-3, 1000), (1e-6, 1_000_000), (0.1, 10), (1 / 49, 49), (1, 1)])
def test_a_far_of_one_impostor_is_resolved(far: float, impostors: int) -> None:
    require_resolvable(far, impostors)


def test_a_far_below_one_impostor_is_refused_with_numbers() -> None:
    message = r"far: got 0.001 with 600 different pairs, which resolve no rate below 0.0017; wanted at least 1000"
    with pytest.raises(ValueError, match=message):
        require_resolvable(1e-3, 600)
    with pytest.raises(ValueError, match=r"far: got 0.01 with 30 different pairs"):
        tar_at_far(roc(make_pairs(0)), 0.01)
    with pytest.raises(ValueError, match=r"far: got 0, wanted above 0"):
        require_resolvable(0, 600)


def test_bad_input_is_refused_with_numbers() -> None:
    with pytest.raises(ValueError, match=r"got lengths .*'same': 1.*wanted them equal"):
        scored([0.1, 0.2], [True], [0, 1])
    with pytest.raises(ValueError, match=r"scores: got 1 that are not finite"):
        scored([0.1, np.nan], [True, False], [0, 1])
    one_kind = scored([0.1, 0.2], [True, True], [0, 1])
    with pytest.raises(ValueError, match=r"got 2 same and 0 different pairs"):
        roc(one_kind)
    one_fold = scored([0.1, 0.2], [True, False], [0, 0])
    with pytest.raises(ValueError, match=r"folds: got 1 with pairs, wanted at least 2"):
        kfold_accuracy(one_fold)
