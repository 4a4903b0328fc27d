"""InsightFace's rules against the loops of its script, in scikit-learn's folds and normalisation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

from pipeline.evaluation.scoring.insightface_rules import by_insightface_rules, cross_validated_tar
from pipeline.evaluation.scoring.verification import FloatArray, IntArray, ScoredPairs, cosine_scores, kfold_accuracy


def make(count: int, seed: int, blocks: int = 10, noise: float = 1.1) -> tuple[FloatArray, IntArray, IntArray, Any]:
    """Pairs in runs of one kind, as in LFW's list: image and mirror of 2 × `count` images."""
    generator = np.random.default_rng(seed)
    same = (np.arange(count) * 2 * blocks // count) % 2 == 0
    person = generator.normal(size=(count, 8))
    other = np.where(same[:, None], person, generator.normal(size=(count, 8)))
    clean = np.stack([person, other], axis=1).reshape(2 * count, 8)
    features = np.concatenate([clean + generator.normal(0, noise, clean.shape) for _ in range(2)], axis=1)
    a, b = np.arange(0, 2 * count, 2), np.arange(1, 2 * count, 2)
    pairs = ScoredPairs.of(
        cosine_scores(features, a, b), same, np.arange(count) % 4, identity_a=a, identity_b=np.where(same, a, b)
    )
    return features, a, b, pairs


def script(features: FloatArray, same: Any) -> tuple[list[float], list[float], list[float] | None, list[float]]:
    """Thresholds, accuracies, VAL and FAR by fold."""
    unit = normalize(features[:, :8] + features[:, 8:])
    return script_on([float(np.sum((x - y) ** 2)) for x, y in zip(unit[0::2], unit[1::2], strict=True)], same)


def script_on(distance: list[float], same: Any) -> tuple[list[float], list[float], list[float] | None, list[float]]:
    """The same, given the squared distance of each pair."""
    thresholds: list[float] = []
    accuracies, vals, fars = [], [], list[float]()
    for train, test in KFold(10).split(distance):
        best = (-1.0, 0.0)
        for threshold in np.arange(0, 4, 0.01):
            right = sum((distance[i] < threshold) == same[i] for i in train) / len(train)
            best = max(best, (right, -threshold))
        thresholds.append(-best[1])
        accuracies.append(sum((distance[i] < -best[1]) == same[i] for i in test) / len(test))
        grid = np.arange(0, 4, 0.001)
        impostors = np.array([distance[i] for i in train if not same[i]])
        accepted = np.array([np.mean(impostors < threshold) for threshold in grid])
        above = int(np.argmax(accepted >= 1e-3))
        slope = (grid[above] - grid[above - 1]) / (accepted[above] - accepted[above - 1])
        threshold = grid[above - 1] + slope * (1e-3 - accepted[above - 1])
        genuine, rest = [i for i in test if same[i]], [i for i in test if not same[i]]
        if not genuine or not rest:
            return thresholds, accuracies, None, fars
        vals.append(sum(distance[i] < threshold for i in genuine) / len(genuine))
        fars.append(sum(distance[i] < threshold for i in rest) / len(rest))
    return thresholds, accuracies, vals, fars


@pytest.mark.parametrize(("count", "seed"), [(200, 0), (207, 1)])
def test_every_number_equals_the_scripts(count: int, seed: int) -> None:
    features, a, b, pairs = make(count, seed)
    found = by_insightface_rules(features, a, b, pairs, mirrored=True)
    thresholds, accuracies, vals, fars = script(features, pairs.same)
    np.testing.assert_allclose(found.thresholds, thresholds, atol=1e-12)
    assert found.accuracy == pytest.approx(np.mean(accuracies))
    assert found.deviation == pytest.approx(np.std(accuracies))
    assert vals is not None and found.val is not None
    assert found.val == pytest.approx(np.mean(vals))
    assert found.val_deviation == pytest.approx(np.std(vals))
    assert found.far == pytest.approx(np.mean(fars))
    assert 0 < found.val < found.accuracy < 1


def test_the_threshold_of_a_far_lies_between_two_of_the_grid() -> None:
    """All same pairs and two of the others lie between two thresholds of the grid: what is interpolated counts."""
    generator = np.random.default_rng(0)
    same = np.arange(400) % 2 == 0
    distance = np.where(same, generator.uniform(1.0, 1.001, 400), 3.0)
    distance[[1, 41]] = 1.0005
    found = cross_validated_tar(distance, same, np.arange(400) // 40)
    _, _, vals, fars = script_on(distance.tolist(), same)
    assert found is not None and vals is not None
    np.testing.assert_allclose(found[0], vals, atol=1e-12)
    np.testing.assert_allclose(found[1], fars, atol=1e-12)
    assert found[0].std() > 0


def test_the_steps_lead_from_our_accuracy_to_theirs() -> None:
    features, a, b, pairs = make(200, 0)
    found = by_insightface_rules(features, a, b, pairs, mirrored=True)
    names, accuracies = zip(*found.steps, strict=True)
    assert names[0] == "our rules"
    summed = replace(pairs, scores=cosine_scores(features[:, :8] + features[:, 8:], a, b))
    assert accuracies[:2] == (kfold_accuracy(pairs).mean, kfold_accuracy(summed).mean)
    assert accuracies[2] == kfold_accuracy(replace(summed, fold=np.arange(200) // 20)).mean
    assert accuracies[-1] == found.accuracy
    assert len(set(accuracies)) == 4


def test_embeddings_made_elsewhere_are_compared_as_they_are() -> None:
    features, a, b, pairs = make(200, 0)
    found = by_insightface_rules(features[:, :8], a, b, pairs, mirrored=False)
    doubled = by_insightface_rules(np.tile(features[:, :8], 2), a, b, pairs, mirrored=True)
    assert (found.accuracy, found.val) == (doubled.accuracy, doubled.val)
    assert [name for name, _ in found.steps] == ["our rules", "folds of 10 runs of pairs", "thresholds 0.01 apart"]


def test_without_both_kinds_in_a_fold_there_is_no_val() -> None:
    features, a, b, pairs = make(200, 0, blocks=2)
    found = by_insightface_rules(features, a, b, pairs, mirrored=True)
    assert (found.val, found.val_deviation, found.far) == (None, None, None)
    np.testing.assert_allclose(found.thresholds[0], script(features, pairs.same)[0][0])


def test_a_far_that_the_grid_does_not_reach_accepts_nobody() -> None:
    """All impostors at the opposite, whose squared distance is 4."""
    features, a, b, pairs = make(200, 0, noise=0)
    features[b[~pairs.same]] = -features[a[~pairs.same]]
    assert by_insightface_rules(features, a, b, pairs, mirrored=True).val == 0


def test_fewer_than_ten_pairs_are_refused() -> None:
    features, a, b, pairs = make(8, 0, blocks=1)
    with pytest.raises(ValueError, match="rules: got 8 pairs, wanted at least 10"):
        by_insightface_rules(features, a, b, pairs, mirrored=True)
