"""The bootstrap over identities: weights by literal repetition, intervals by coverage of a known truth."""

from statistics import NormalDist

import numpy as np
import pytest

from pipeline.evaluation.scoring import bootstrap
from pipeline.evaluation.scoring.bootstrap import (
    draw_pairs,
    identity_draws,
    pair_generator,
    pair_weights,
    resample_identities,
    roc_band,
    trial_draws,
)
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


def test_draws_equal_a_slow_bootstrap_of_repeated_pairs() -> None:
    pairs = all_pairs(8, 3, seed=2)
    people, one_by_one = [], []
    generator = np.random.default_rng(7)
    for _ in range(20):
        drawn = np.bincount(generator.integers(8, size=8), minlength=8)
        copies = [
            drawn[i] if i == j else drawn[i] * drawn[j] for i, j in zip(pairs.identity_a, pairs.identity_b, strict=True)
        ]
        people.append(accuracy_and_auc(pairs.select(np.repeat(np.arange(len(pairs)), copies))))
    generator = pair_generator(7)
    for _ in range(20):
        counts = iter(draw_pairs(int(np.sum(~pairs.same)), generator))
        copies = [1 if same else next(counts) for same in pairs.same]
        one_by_one.append(accuracy_and_auc(pairs.select(np.repeat(np.arange(len(pairs)), copies))))
    found = identity_draws(pairs, accuracy_and_auc, resamples=20, seed=7)
    np.testing.assert_allclose(found.value_K, accuracy_and_auc(pairs), atol=1e-12)
    np.testing.assert_allclose(found.people_BK, people, atol=1e-12)
    np.testing.assert_allclose(found.pairs_AK, one_by_one, atol=1e-12)
    assert found.units_K.tolist() == [8, 8]


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    pairs = all_pairs(6, 2, seed=3)
    first, again, other = (identity_draws(pairs, accuracy_and_auc, 30, seed).rates() for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_pairs_are_drawn_alike_whatever_their_scores() -> None:
    """Two networks are compared under the same draws."""
    pairs = all_pairs(6, 2, seed=3)
    weighted = [identity_draws(p, lambda q: np.sort(q.weight), 5).pairs_AK for p in (pairs, all_pairs(6, 2, seed=4))]
    np.testing.assert_array_equal(weighted[0], weighted[1])

    def first_pair(drawn: ScoredPairs) -> FloatArray:
        """The weight of the pair of two people that is mentioned first, wherever its score has put it."""
        place = np.flatnonzero((drawn.identity_a == 0) & (drawn.identity_b == 1) & (drawn.fold == pairs.fold[1]))
        return np.array([np.sum(drawn.weight[place])])

    found = [identity_draws(p, first_pair, 9).pairs_AK for p in (pairs, all_pairs(6, 2, seed=4))]
    np.testing.assert_array_equal(found[0], found[1])


def test_the_interval_covers_the_truth_where_an_interval_over_pairs_does_not() -> None:
    """Data sets of known AUC: 90 % intervals over identities mostly cover it, intervals over pairs do not."""
    # Genuine scores are N(1.2, 1 + 0.8²) over the population, impostor scores N(0, 1).
    truth = NormalDist().cdf(1.2 / (1 + 1 + 0.8**2) ** 0.5)
    covered = covered_by_pairs = 0
    for seed in range(40):
        pairs = all_pairs(20, 6, seed)
        low, high = identity_draws(pairs, lambda p: np.array([auc(roc(p))]), 40, seed).rates(0.9)[0]
        covered += bool(low <= truth <= high)
        generator = np.random.default_rng(seed)
        by_pair = [auc(roc(pairs.select(generator.integers(len(pairs), size=len(pairs))))) for _ in range(40)]
        covered_by_pairs += bool(np.quantile(by_pair, 0.05) <= truth <= np.quantile(by_pair, 0.95))
    assert covered >= 33  # 36 of 40 is nominal
    assert covered_by_pairs <= 24


def test_a_roc_band_is_the_interval_of_the_tar_at_each_far() -> None:
    pairs = all_pairs(8, 3, seed=2)
    band = roc_band(pairs, np.array([0.05, 0.3]), resamples=20, seed=1)
    for i, far in enumerate((0.05, 0.3)):

        def tar(drawn: ScoredPairs, far: float = far) -> FloatArray:
            return np.array([attained_tar(roc(drawn), far)])

        alone = identity_draws(pairs, tar, 20, 1).rates()
        np.testing.assert_array_equal(band[i], alone[0])


def test_a_draw_without_impostors_is_drawn_again() -> None:
    """Two people: half of the draws hold one person only."""
    pairs = all_pairs(2, 3, seed=0)
    assert np.isfinite(identity_draws(pairs, accuracy_and_auc, resamples=20).rates()).all()


def test_a_set_too_small_for_an_interval_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs: two draws of nine hold all three people."""
    pairs = ScoredPairs.of([0.0, 1.0], [True, False], [0, 1], identity_a=[0, 1], identity_b=[0, 2])
    monkeypatch.setattr(bootstrap, "PATIENCE", 1)
    with pytest.raises(ValueError, match=r"bootstrap: \d of 20 draws of 3 identities .*, wanted 20: .* too small"):
        identity_draws(pairs, accuracy_and_auc, resamples=20)
    with pytest.raises(ValueError, match=r"got 0 resamples"):
        identity_draws(pairs, accuracy_and_auc, resamples=0)


def sparse(seed: int, folds: int = 3, people: int = 30, size: int = 60) -> ScoredPairs:
    """Folds with people of their own and as many pairs of each kind, as in LFW: a person is in few pairs."""
    generator = np.random.default_rng(seed)
    ease = generator.normal(0, 0.5, folds * people)
    fold = np.repeat(np.arange(folds), 2 * size)
    same = np.tile(np.repeat([True, False], size), folds)
    a = generator.integers(people, size=len(fold))
    b = np.where(same, a, (a + generator.integers(1, people, size=len(fold))) % people)
    a, b = a + fold * people, b + fold * people
    scores = generator.normal(2.0 * same, 1) + np.where(same, ease[a], (ease[a] + ease[b]) / 8**0.5)
    return ScoredPairs.of(scores, same, fold, identity_a=a, identity_b=b)


def test_the_interval_of_a_kfold_accuracy_lies_around_it_and_is_as_wide_as_chance() -> None:
    """Sets of one population: the draws alone are too low and 1.7 times too wide, the intervals are neither."""

    def accuracy(pairs: ScoredPairs) -> FloatArray:
        return np.array([kfold_accuracy(pairs).mean])

    measured = np.array([accuracy(sparse(seed)) for seed in range(150)])[:, 0]
    truth, chance = measured.mean(), measured.std()
    shifts, raw, spread, covered = [], [], [], 0
    for seed in range(20):
        draws = identity_draws(sparse(seed), accuracy, 60, seed)
        low, high = draws.rates()[0]
        shifts.append(draws.people_BK.mean() - draws.value_K[0])
        raw.append(draws.people_BK.var())
        spread.append(draws.spread().var())
        assert draws.spread().mean() == pytest.approx(measured[seed], abs=1e-12)
        covered += bool(low <= truth <= high)
    assert np.mean(shifts) < -0.004
    assert np.mean(raw) ** 0.5 > 1.5 * chance
    assert 0.9 * chance < np.mean(spread) ** 0.5 < 1.25 * chance
    assert covered >= 18  # 19 of 20 is nominal


def test_trials_are_drawn_with_their_people() -> None:
    identity = np.array([4, 4, 4, 9, 2, 2])
    hits = np.array([1.0, 1, 0, 1, 0, 1])
    found = trial_draws(identity, lambda weight: np.array([np.average(hits, weights=weight)]), 30, seed=5)
    generator = np.random.default_rng(5)
    for value in found.people_BK[:, 0]:
        people = [[2, 4, 9][i] for i in generator.integers(3, size=3)]
        trials = [hits[i] for person in people for i in np.flatnonzero(identity == person)]
        assert value == pytest.approx(sum(trials) / len(trials), abs=1e-12)
    assert found.value_K[0] == pytest.approx(4 / 6)
    expected = np.percentile(found.people_BK - found.people_BK.mean() + 4 / 6, [2.5, 97.5])
    np.testing.assert_allclose(found.rates()[0], np.clip(expected, 0, 1), atol=1e-12)
    assert found.units_K[0] == pytest.approx(36 / (9 + 1 + 4))


def test_resampling_keeps_everything_but_the_weights() -> None:
    pairs = all_pairs(5, 2, seed=0)
    drawn = resample_identities(pairs, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn.scores, pairs.scores)
    assert drawn.weight.shape == pairs.weight.shape
