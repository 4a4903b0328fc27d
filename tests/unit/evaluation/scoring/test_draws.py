"""From draws to intervals: against the same in plain loops, and by the chance of nothing but hits."""

import math

import numpy as np
import pytest

from pipeline.evaluation.scoring.draws import Draws, effective_people, of_rates

PEOPLE = np.array([[0.70, 0.5], [0.74, 0.5], [0.66, 0.5], [0.78, 0.5]])
PAIRS = np.array([[0.72, 0.5], [0.74, 0.5]])


def variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def test_the_spread_is_what_the_draws_vary_by_without_two_parts_of_the_pairs_chance() -> None:
    found = Draws(np.array([0.8, 0.5]), PEOPLE, PAIRS, np.array([9.0, 9.0])).spread()
    column = PEOPLE[:, 0].tolist()
    narrowed = math.sqrt(1 - 2 * variance(PAIRS[:, 0].tolist()) / variance(column))
    expected = [0.8 + narrowed * (value - sum(column) / 4) for value in column]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-12)
    assert found[:, 1].tolist() == [0.5] * 4  # nothing varies


def test_at_most_two_thirds_of_the_variance_are_taken_off() -> None:
    """Pairs of people of whom each is in one pair: their chance is all there is, and was counted three times."""
    wide = Draws(np.array([0.8]), PEOPLE[:, :1], 9 * PAIRS[:, :1], np.ones(1)).spread()
    assert wide.var() == pytest.approx(PEOPLE[:, 0].var() / 3)


@pytest.mark.parametrize("people", [1, 7, 200])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_at_0_and_at_1_the_interval_is_the_exact_one(people: int, confidence: float) -> None:
    draws = Draws.of_trials(np.array([0.0, 1.0]), np.array([[0.0, 1.0]] * 5), people)
    never, always = draws.rates(confidence)
    tail = (1 - confidence) / 2
    assert (never[0], always[1]) == (0, 1)
    assert math.prod([1 - never[1]] * people) == pytest.approx(tail)  # the chance of no hit in so many trials
    assert math.prod([always[0]] * people) == pytest.approx(tail)  # the chance of nothing but hits


def test_at_0_and_at_1_an_interval_of_the_draws_that_is_wider_stays() -> None:
    found = of_rates(np.array([1.0, 0.0]), np.array([[0.3, 1.0], [0.0, 0.8]]), np.full(2, 9.0), 0.95)
    assert found.tolist() == [[0.3, 1], [0, 0.8]]


def test_a_rate_stays_within_0_and_1_and_a_difference_need_not() -> None:
    draws = Draws.of_trials(np.array([0.99]), np.array([[0.9], [1.0]]), 50)
    assert draws.rates().tolist() == [[pytest.approx(0.9425), 1]]
    assert draws.differences()[0, 1] > 1


def test_means_and_differences_are_taken_draw_by_draw() -> None:
    generator = np.random.default_rng(0)
    one, other = (
        Draws(generator.random(2), generator.random((5, 2)), generator.random((3, 2)), np.full(2, 4.0))
        for _ in range(2)
    )
    mean, gain = Draws.mean([one, other]), one.above(other)
    for name in ("value_K", "people_BK", "pairs_AK"):
        mine, base = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(getattr(mean, name), (mine + base) / 2)
        np.testing.assert_allclose(getattr(gain, name), mine - base)
    assert mean.units_K.tolist() == [4, 4]


def test_people_with_more_trials_count_for_less_than_they_are() -> None:
    assert effective_people(np.array([3, 3, 8, 8, 5, 5])) == 3
    assert effective_people(np.array([1, 1, 1, 1, 2])) == pytest.approx(25 / 17)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=f"got confidence {confidence}, wanted one between 0 and 1"):
        Draws.of_trials(np.array([0.5]), np.array([[0.5]]), 5).rates(confidence)
