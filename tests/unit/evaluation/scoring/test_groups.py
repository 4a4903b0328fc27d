"""Errors by group against loops over pairs: one threshold for all, shares of each group's own pairs."""

import numpy as np
import pytest

from pipeline.evaluation.scoring.bootstrap import resample_identities
from pipeline.evaluation.scoring.groups import ACROSS, errors_by_group
from pipeline.evaluation.scoring.rates import Rate, TarAtFar
from pipeline.evaluation.scoring.verification import ScoredPairs

ANY = Rate(value=0, low=0, high=0)
TARS = [TarAtFar(far=0.1, tar=ANY, threshold=0.6), TarAtFar(far=0.01, tar=ANY, threshold=None)]
NAMES = ["east", "west"]


def make() -> tuple[ScoredPairs, np.ndarray, np.ndarray]:
    """300 pairs of 30 people, of whom the first ten are of the east, ten of the west and ten of neither."""
    generator = np.random.default_rng(0)
    a, b = generator.integers(30, size=(2, 300))
    b[:120] = a[:120]
    scores = generator.normal(1.2 * (a == b) + 0.3 * (a < 10), 0.5)
    group = np.array([0, 1, -1])[np.arange(30) // 10]
    pairs = ScoredPairs.of(scores, a == b, np.arange(300) % 3, identity_a=a, identity_b=b)
    return pairs, group[a], group[b]


def test_rates_equal_a_loop_over_the_groups_pairs() -> None:
    pairs, one, other = make()
    found = {group.name: group for group in errors_by_group(pairs, one, other, NAMES, TARS, resamples=20)}
    assert list(found) == [*NAMES, ACROSS]
    for name, group in found.items():
        wanted = {"east": (0, 0), "west": (1, 1)}
        false_matches, false_non_matches, impostors, genuine = 0, 0, 0, 0
        for i in range(300):
            kinds = (one[i], other[i])
            if kinds == wanted.get(name) or (name == ACROSS and set(kinds) == {0, 1}):
                impostors += not pairs.same[i]
                genuine += pairs.same[i]
                false_matches += bool(not pairs.same[i] and pairs.scores[i] >= 0.6)
                false_non_matches += bool(pairs.same[i] and pairs.scores[i] < 0.6)
        assert (group.genuine, group.impostors) == (genuine, impostors)
        at_threshold, at_none = group.errors
        assert at_threshold.fmr is not None and at_none.fmr is not None
        assert at_threshold.fmr.value == pytest.approx(false_matches / impostors)
        assert at_none.fmr.value == 0 < at_none.fmr.high  # nothing is accepted, of a few pairs
        if name == ACROSS:
            assert at_threshold.fnmr is None
        else:
            assert at_threshold.fnmr is not None and at_none.fnmr is not None
            assert at_threshold.fnmr.value == pytest.approx(false_non_matches / genuine)
            assert at_none.fnmr.value == 1


def test_intervals_are_over_the_people_at_the_same_threshold() -> None:
    pairs, one, other = make()
    east = errors_by_group(pairs, one, other, NAMES, TARS, resamples=40, seed=3)[0].errors[0].fnmr
    known = pairs.select((one >= 0) & (other >= 0))
    mine = (known.identity_a < 10) & known.same
    generator, values = np.random.default_rng(3), []
    for _ in range(40):
        drawn = resample_identities(known, generator).weight
        values.append(float(np.average(known.scores[mine] < 0.6, weights=drawn[mine])))
    assert east is not None
    around = np.array(values) - np.mean(values) + east.value
    expected = np.clip(np.percentile(around, [2.5, 97.5]), 0, 1)
    np.testing.assert_allclose((east.low, east.high), expected, atol=1e-12)


def test_images_of_no_group_leave_nothing_to_report() -> None:
    pairs, one, _ = make()
    assert errors_by_group(pairs, np.full_like(one, -1), one, NAMES, TARS, resamples=5) == ()


@pytest.mark.parametrize("kind", [True, False])
def test_groups_whose_pairs_are_of_one_kind_have_the_error_of_that_kind(kind: bool) -> None:
    """Of one grouped person there are same pairs alone, of two groups of one person each perhaps different ones."""
    pairs, one, other = make()
    mine = pairs.same == kind
    east, *_ = errors_by_group(pairs.select(mine), one[mine], other[mine], NAMES, TARS, resamples=20)
    given, absent = (east.errors[0].fnmr, east.errors[0].fmr)[:: 1 if kind else -1]
    assert absent is None and given is not None and given.low <= given.value <= given.high
    assert (east.genuine > 0, east.impostors > 0) == (kind, not kind)
