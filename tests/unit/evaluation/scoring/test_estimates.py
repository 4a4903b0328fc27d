"""Means over seeds: intervals by quantiles known in closed form, by literal repetition, and by coverage."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluation.scoring.bootstrap import draw_pairs, pair_generator, resample_identities
from pipeline.evaluation.scoring.draws import Draws
from pipeline.evaluation.scoring.estimates import accuracy_draws, difference, estimate, paired_differences
from pipeline.evaluation.scoring.rates import verify
from pipeline.evaluation.scoring.verification import ScoredPairs, attained_tar, kfold_accuracy, roc

# Student's t at 97.5% for 1, 2 and 4 degrees of freedom, from any table.
T = {2: 12.706, 3: 4.303, 5: 2.776}


def scored(seed: int, people: int = 12, images: int = 3) -> ScoredPairs:
    """Every pair among `people` × `images`, with scores that only `seed` decides."""
    identity = np.repeat(np.arange(people), images)
    a, b = np.triu_indices(len(identity), 1)
    same = identity[a] == identity[b]
    scores = same + np.random.default_rng(seed).normal(0, 0.8, len(a))
    return ScoredPairs.of(scores, same, np.arange(len(a)) % 3, identity_a=identity[a], identity_b=identity[b])


def sample(value: float, draws: np.ndarray) -> Draws:
    """A run's accuracy, as measured and under draws of the people."""
    return Draws.of_trials(np.array([value]), draws[:, None], 100)


def test_one_seed_has_the_interval_that_its_evaluation_reports() -> None:
    pairs = scored(1)
    found = estimate({4: accuracy_draws(pairs, resamples=60, seed=2)})
    reported = verify(pairs, (0.1,), resamples=60, seed=2).accuracy
    expected = (reported.value, reported.low, reported.high)
    np.testing.assert_allclose((found.mean, found.low, found.high), expected, atol=1e-12)


@pytest.mark.parametrize("seeds", T)
def test_without_chance_in_the_people_the_interval_is_students(seeds: int) -> None:
    values = np.random.default_rng(seeds).normal(0.5, 0.01, seeds)
    found = estimate({seed: sample(value, np.full(200_000, value)) for seed, value in enumerate(values)})
    mean = sum(values) / seeds
    error = (sum((value - mean) ** 2 for value in values) / (seeds - 1) / seeds) ** 0.5
    assert found.mean == pytest.approx(mean, abs=1e-15)
    assert (found.high - mean) / error == pytest.approx(T[seeds], rel=0.05)
    assert (mean - found.low) / error == pytest.approx(T[seeds], rel=0.05)


def test_a_difference_is_taken_draw_by_draw_on_common_seeds() -> None:
    """What all runs share by the draw of the people is no reason to doubt the order of two arms."""
    shared = np.random.default_rng(0).normal(0, 0.1, 1000)
    base = {seed: sample(0.8, 0.8 + shared) for seed in (1, 2, 3)}
    better = {seed: sample(0.81 + seed / 10_000, 0.81 + seed / 10_000 + shared) for seed in (2, 3, 9)}
    found = difference(better, base)
    assert found is not None
    assert found.values == pytest.approx((0.0102, 0.0103))
    assert 0.009 < found.low < found.mean < found.high < 0.0115
    assert estimate(base).low < 0.7  # either alone is uncertain
    assert difference({9: better[9]}, base) is None


def test_what_fewer_people_cost_one_arm_more_is_no_difference() -> None:
    spread = np.random.default_rng(0).normal(0, 0.001, 1000)
    found = difference({1: sample(0.9, 0.85 + spread)}, {1: sample(0.8, np.full(1000, 0.79))})
    assert found is not None
    expected = 0.1 + np.quantile(spread - spread.mean(), [0.025, 0.975])
    np.testing.assert_allclose([found.mean, found.low, found.high], [0.1, *expected], atol=1e-12)


def test_runs_with_the_same_pairs_are_drawn_the_same_people() -> None:
    """Two networks of equal scores but for a constant have the same accuracy under every draw."""
    one = scored(1)
    shifted = ScoredPairs.of(
        one.scores + 0.25, one.same, one.fold, identity_a=one.identity_a, identity_b=one.identity_b
    )
    found = [accuracy_draws(pairs, resamples=40) for pairs in (one, shifted)]
    for name in ("people_BK", "pairs_AK"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    assert (found[0].people_BK != accuracy_draws(scored(2), resamples=40).people_BK).any()


def test_the_interval_covers_the_truth_with_three_seeds() -> None:
    """Accuracies are truth + chance of the seed + chance of the people: 90% intervals hold the truth about so often."""
    covered = 0
    for trial in range(200):
        generator = np.random.default_rng(trial)
        people = generator.normal(0, 0.01)
        draws = generator.normal(0, 0.01, 500)  # the people drawn are the same for every seed
        values = 0.8 + people + generator.normal(0, 0.02, 3)
        runs = {seed: sample(value, value + draws) for seed, value in enumerate(values)}
        found = estimate(runs, confidence=0.9)
        covered += found.low <= 0.8 <= found.high
    assert 168 <= covered <= 196  # 180 is nominal


def test_a_paired_difference_is_that_of_the_rates_under_the_same_draws() -> None:
    mine, base = scored(1), scored(2)
    found = paired_differences(mine, base, (0.2,), resamples=40, seed=3)
    for gain, rate in zip(
        found,
        (lambda p: kfold_accuracy(p).mean, lambda p: attained_tar(roc(p), 0.2)),
        strict=True,
    ):
        generators = [np.random.default_rng(3) for _ in range(2)]
        draws, one_by_one = [], []
        for _ in range(40):  # every draw of these people holds pairs of both kinds
            one, other = (resample_identities(p, g) for p, g in zip((mine, base), generators, strict=True))
            np.testing.assert_array_equal(one.weight, other.weight)
            draws.append(rate(one) - rate(other))
        generator = pair_generator(3)
        for _ in range(40):
            weight = np.ones(len(mine))
            weight[~mine.same] = draw_pairs(int(np.sum(~mine.same)), generator)
            one_by_one.append(rate(replace(mine, weight=weight)) - rate(replace(base, weight=weight)))
        value = rate(mine) - rate(base)
        narrowed = (1 - min(2 / 3, float(2 * np.var(one_by_one) / np.var(draws)))) ** 0.5
        spread = narrowed * (np.array(draws) - np.mean(draws)) + value
        assert gain.mean == value
        np.testing.assert_allclose((gain.low, gain.high), np.percentile(spread, [2.5, 97.5]), atol=1e-12)


def test_what_is_hard_for_both_cancels_out() -> None:
    base = scored(1)
    better = replace(base, scores=base.scores + np.where(base.same, 0.01, 0.0))
    gain = paired_differences(better, base, (0.2,), resamples=40)[0]
    widths = [rate.high - rate.low for rate in (verify(pairs, (0.2,), 40).accuracy for pairs in (better, base))]
    assert gain.high - gain.low < math.hypot(*widths) / 2  # hypot: of two runs on people of their own


def test_other_pairs_are_no_comparison() -> None:
    base = scored(1)
    with pytest.raises(ValueError, match="got pairs that differ in fold, wanted the same pairs"):
        paired_differences(base, replace(base, fold=1 - base.fold), (0.2,), 5)
