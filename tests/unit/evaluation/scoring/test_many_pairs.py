"""Pairs by the million are judged as few are, bit for bit, in a memory that is bounded."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluation.scoring.bootstrap import pair_weights, roc_band
from pipeline.evaluation.scoring.estimates import estimates, paired_differences
from pipeline.evaluation.scoring.many_pairs import ManyPairs, tar_draws
from pipeline.evaluation.scoring.verification import (
    ScoredPairs,
    attained_tar,
    cosine_scores,
    roc,
    threshold_at,
)


def make(people: int, count: int, seed: int, decimals: int) -> ScoredPairs:
    """Pairs of some people; scores of few decimals have ties."""
    generator = np.random.default_rng(seed)
    a, b = generator.integers(people, size=(2, count))
    b[: count // 3] = a[: count // 3]
    scores = np.round(generator.normal(0.7 * (a == b), 1), decimals)
    return ScoredPairs.of(scores, a == b, np.zeros(count), identity_a=a, identity_b=b)


FARS = np.array([0.0, 1e-9, 0.003, 0.1, 1 / 49, 0.5, 1.0])


@pytest.mark.parametrize("decimals", [0, 1, 9])
@pytest.mark.parametrize("seed", range(4))
def test_rates_are_those_of_the_roc_under_any_draw(seed: int, decimals: int) -> None:
    pairs = make(12, 500, seed, decimals)
    many = ManyPairs(pairs.scores, pairs.same, pairs.identity_a, pairs.identity_b)
    generator = np.random.default_rng(seed)
    for drawn in (None, *generator.integers(0, 4, (5, 12))):
        weighted = (
            pairs
            if drawn is None
            else ScoredPairs.of(
                pairs.scores,
                pairs.same,
                pairs.fold,
                identity_a=pairs.identity_a,
                identity_b=pairs.identity_b,
                weight=pair_weights(pairs, drawn),
            )
        )
        found = many.rates(FARS, None if drawn is None else many.weights(drawn))
        assert found is not None
        np.testing.assert_array_equal(found, [attained_tar(roc(weighted), far) for far in FARS])


def test_a_draw_without_one_kind_has_no_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    many = ManyPairs(np.array([0.1, 0.2]), np.array([True, False]), np.array([0, 1]), np.array([0, 2]))
    assert many.rates(FARS, many.weights(np.array([1, 1, 0]))) is None
    assert many.rates(FARS, many.weights(np.array([0, 1, 1]))) is None
    with pytest.raises(ValueError, match="pairs: got pairs of one kind, wanted same and different ones"):
        tar_draws(ManyPairs(np.ones(2), np.ones(2, bool), np.zeros(2), np.zeros(2)), FARS, 3)
    monkeypatch.setattr("pipeline.evaluation.scoring.many_pairs.PATIENCE", 0)
    with pytest.raises(ValueError, match="draws of 3 people hold pairs of both kinds, wanted 5"):
        tar_draws(many, FARS, 5)


def test_draws_are_those_of_the_bootstrap() -> None:
    pairs = make(9, 400, 5, 2)
    many = ManyPairs(pairs.scores, pairs.same, pairs.identity_a, pairs.identity_b)
    fars = np.array([0.02, 0.3])
    found = tar_draws(many, fars, 30, 7)
    np.testing.assert_array_equal(found.rates(), roc_band(pairs, fars, 30, 7))
    assert found.pairs_AK.std(axis=0).min() > 0


def test_two_networks_are_compared_under_the_same_draws() -> None:
    """Of people and of pairs one by one, though each network sorts the pairs by scores of its own."""
    base, fars = make(9, 400, 5, 2), (0.02, 0.3)
    base = replace(base, fold=np.arange(400) % 2)
    mine = replace(base, scores=base.scores + np.random.default_rng(1).normal(0, 0.5, 400))
    found = [
        tar_draws(ManyPairs(pairs.scores, pairs.same, pairs.identity_a, pairs.identity_b), np.array(fars), 30, 7)
        for pairs in (mine, base)
    ]
    assert estimates(found[0].above(found[1])) == paired_differences(mine, base, fars, 30, 7)[1:]


@pytest.mark.parametrize("decimals", [0, 9])
def test_the_threshold_of_a_far_is_the_lowest_score_that_is_accepted(decimals: int) -> None:
    pairs = make(12, 500, 1, decimals)
    many = ManyPairs(pairs.scores, pairs.same, pairs.identity_a, pairs.identity_b)
    tars = many.rates(FARS)
    assert tars is not None
    for far, tar, threshold in zip(FARS, tars, many.thresholds(FARS), strict=True):
        assert np.mean(pairs.scores[pairs.same] >= threshold) == tar
        assert np.mean(pairs.scores[~pairs.same] >= threshold) <= far
        assert threshold == threshold_at(roc(pairs), far)
        assert np.isinf(threshold) or threshold in pairs.scores


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 9000])
def test_cosines_by_blocks_are_those_at_once(count: int) -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(300, 33)).astype(np.float32)
    a, b = generator.integers(300, size=(2, count))
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    np.testing.assert_array_equal(cosine_scores(rows, a, b), np.einsum("pd,pd->p", unit[a], unit[b]))


def test_a_row_of_zeros_is_like_nothing_and_one_that_is_not_finite_is_refused() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(cosine_scores(rows, np.array([0, 1]), np.array([1, 2])), [0, 0.6])
    rows[1, 1] = np.nan
    with pytest.raises(ValueError, match="features: 1 rows are not finite, the first is row 1"):
        cosine_scores(rows, np.array([0]), np.array([2]))


MEMORY = """\
import resource, sys
import numpy as np
from pipeline.evaluation.scoring.verification import cosine_scores
rows = np.random.default_rng(0).normal(size=(2000, 1024)).astype(np.float32)
a, b = np.random.default_rng(1).integers(2000, size=(2, int(sys.argv[1])))
cosine_scores(rows, a, b)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_pairs_features() -> None:
    """100,000 more pairs of 1,024 numbers would take 1.6 GB side by side; they may take their scores and numbers."""
    few, many = (
        int(subprocess.run([sys.executable, "-c", MEMORY, str(n)], check=True, capture_output=True, text=True).stdout)
        for n in (10_000, 110_000)
    )
    assert many - few < 50_000  # KiB
