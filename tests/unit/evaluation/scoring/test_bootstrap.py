"""The bootstrap over identities: weights by literal repetition, intervals by coverage of a known truth."""

from statistics import NormalDist

import numpy as np
import pytest

from pipeline.evaluation.scoring.bootstrap import identity_bootstrap, pair_weights, resample_identities, roc_band
from pipeline.evaluation.scoring.verification import FloatArray, ScoredPairs, attained_tar, auc, kfold_accuracy, roc


def all_pairs(people: int, images: int, seed: int) -> ScoredPairs:
    """Every pair among `people` × `images`; some people are easy, so one person's pairs are dependent."""
    generator = np.random.default_rng(seed)
    ease = generator.normal(1.2, 0.8, people)
    identity = np.repeat(np.arange(people), images)
    a, b = np.triu_indices(len(identity), 1)
    same = identity[a] == identity[b]
    scores = same * ease[identity[a]] + generator.normal(0, 1, len(a))
    fold = np.arange(len(a)) % 4
    return ScoredPairs.of(scores, same, fold, identity_a=identity[a], identity_b=identity[b])


def accuracy_and_auc(pairs: ScoredPairs) -> FloatArray:
    return np.array([kfold_accuracy(pairs).mean, auc(roc(pairs))])


def test_weights_equal_literal_copies_of_people() -> None:
    """Build the resample as a list of people, compare each copy of one with each copy of the other, count."""
    pairs = all_pairs(5, 3, seed=1)
    people = [0, 0, 0, 2, 3]
    weights = pair_weights(pairs, np.bincount(people, minlength=5))
    for weight, i, j in zip(weights, pairs.identity_a, pairs.identity_b, strict=True):
        if i == j:
            assert weight == sum(person == i for person in people)
        else:
            assert weight == sum(p == i and q == j for p in people for q in people)


def test_intervals_equal_a_slow_bootstrap_of_repeated_pairs() -> None:
    pairs = all_pairs(8, 3, seed=2)
    generator = np.random.default_rng(7)
    values = []
    for _ in range(20):
        drawn = np.bincount(generator.integers(8, size=8), minlength=8)
        copies = [
            drawn[i] if i == j else drawn[i] * drawn[j] for i, j in zip(pairs.identity_a, pairs.identity_b, strict=True)
        ]
        repeated = pairs.select(np.repeat(np.arange(len(pairs)), copies))
        values.append(accuracy_and_auc(repeated))
    expected = np.quantile(np.array(values), [0.05, 0.95], axis=0).T
    found = identity_bootstrap(pairs, accuracy_and_auc, resamples=20, seed=7, confidence=0.9)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    pairs = all_pairs(6, 2, seed=3)
    first, again, other = (identity_bootstrap(pairs, accuracy_and_auc, 30, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_interval_covers_the_truth_where_an_interval_over_pairs_does_not() -> None:
    """Data sets of known AUC: 90 % intervals over identities mostly cover it, intervals over pairs do not."""
    # Genuine scores are N(1.2, 1 + 0.8²) over the population, impostor scores N(0, 1).
    truth = NormalDist().cdf(1.2 / (1 + 1 + 0.8**2) ** 0.5)
    covered = covered_by_pairs = 0
    for seed in range(40):
        pairs = all_pairs(20, 6, seed)
        low, high = identity_bootstrap(pairs, lambda p: np.array([auc(roc(p))]), 60, seed, confidence=0.9)[0]
        covered += bool(low <= truth <= high)
        generator = np.random.default_rng(seed)
        by_pair = [auc(roc(pairs.select(generator.integers(len(pairs), size=len(pairs))))) for _ in range(60)]
        covered_by_pairs += bool(np.quantile(by_pair, 0.05) <= truth <= np.quantile(by_pair, 0.95))
    assert covered >= 33  # 36 of 40 is nominal
    assert covered_by_pairs <= 24


def test_a_roc_band_is_the_interval_of_the_tar_at_each_far() -> None:
    pairs = all_pairs(8, 3, seed=2)
    band = roc_band(pairs, np.array([0.05, 0.3]), resamples=20, seed=1)
    for i, far in enumerate((0.05, 0.3)):

        def tar(drawn: ScoredPairs, far: float = far) -> FloatArray:
            return np.array([attained_tar(roc(drawn), far)])

        alone = identity_bootstrap(pairs, tar, 20, 1)
        np.testing.assert_array_equal(band[i], alone[0])


def test_a_draw_without_impostors_is_drawn_again() -> None:
    """Two people: half of the draws hold one person only."""
    pairs = all_pairs(2, 3, seed=0)
    intervals = identity_bootstrap(pairs, accuracy_and_auc, resamples=20)
    assert np.isfinite(intervals).all()


def test_a_set_too_small_for_an_interval_is_refused() -> None:
    pairs = ScoredPairs.of(
        np.arange(4.0), [True, True, True, True], [0, 1, 0, 1], identity_a=range(4), identity_b=range(4)
    )
    with pytest.raises(ValueError, match=r"bootstrap: 0 of 50 draws of 4 identities .* too small"):
        identity_bootstrap(pairs, accuracy_and_auc, resamples=1)
    with pytest.raises(ValueError, match=r"got 0 resamples"):
        identity_bootstrap(pairs, accuracy_and_auc, resamples=0)


def test_resampling_keeps_everything_but_the_weights() -> None:
    pairs = all_pairs(5, 2, seed=0)
    drawn = resample_identities(pairs, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn.scores, pairs.scores)
    assert drawn.weight.shape == pairs.weight.shape
