"""Identification rates against loops that follow the protocols' words."""

import numpy as np
import pytest

from pipeline.evaluation.scoring.distractors import identify
from pipeline.evaluation.scoring.identification import (
    UNRANKED,
    cmc,
    distractor_barrier,
    distractor_ranks,
    false_alarm_barrier,
    highest_rejected,
    mate_ranks,
    mate_scores,
)
from pipeline.evaluation.scoring.search import Neighbours, blocks_of, nearest


def distractor_tar(mates: np.ndarray, found: Neighbours, far: float) -> float:
    return float(np.mean(mates > distractor_barrier(found, far)))


def tpir_at_fpir(found: Neighbours, probe: np.ndarray, gallery: np.ndarray, fpir: float, rank: int = 1) -> float:
    mated = np.isin(probe, gallery)
    barrier = false_alarm_barrier(found, mated, fpir)
    hits = (mate_ranks(found, probe, gallery) <= rank) & (mate_scores(found, probe, gallery) > barrier)
    return float(np.mean(hits[mated]))


def make(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Noisy views of 12 people; the gallery holds people 0-7 twice, the probes are of all 12."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(12, 5))
    probe_identity, gallery_identity = np.repeat(np.arange(12), 5), np.repeat(np.arange(8), 2)
    probes = centres[probe_identity] + generator.normal(size=(60, 5))
    gallery = centres[gallery_identity] + generator.normal(size=(16, 5))
    return probes, probe_identity, gallery, gallery_identity


def cosines(probes: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    return np.array([[p @ q / (p @ p * (q @ q)) ** 0.5 for q in gallery] for p in probes])


@pytest.mark.parametrize("seed", range(4))
def test_ranks_and_cmc_equal_a_loop(seed: int) -> None:
    probes, probe_identity, gallery, gallery_identity = make(seed)
    found = nearest(probes, blocks_of(gallery, 5), k=16)
    ranks = mate_ranks(found, probe_identity, gallery_identity)
    scores = cosines(probes, gallery)
    for i, person in enumerate(probe_identity):
        mates = [s for s, g in zip(scores[i], gallery_identity, strict=True) if g == person]
        rivals = [s for s, g in zip(scores[i], gallery_identity, strict=True) if g != person]
        expected = 1 + sum(r >= max(mates) for r in rivals) if mates else UNRANKED
        assert ranks[i] == expected
    mated = ranks[probe_identity < 8]
    np.testing.assert_allclose(cmc(mated, 14), [np.mean([r <= k for r in mated]) for k in range(1, 15)])
    assert cmc(mated, 15)[-1] == 1


def test_ranks_beyond_the_kept_neighbours_are_unranked() -> None:
    probes, probe_identity, gallery, gallery_identity = make()
    every = mate_ranks(nearest(probes, [gallery], 16), probe_identity, gallery_identity)
    few = mate_ranks(nearest(probes, [gallery], 3), probe_identity, gallery_identity)
    np.testing.assert_array_equal(cmc(every, 2), cmc(few, 2))
    assert set(few[few != every]) <= {UNRANKED}


def test_a_tie_counts_against_the_mate() -> None:
    row = np.ones((1, 3))
    found = nearest(row, [np.concatenate([row, row])], 2)
    assert mate_ranks(found, np.array([0]), np.array([0, 1])).tolist() == [2]
    assert distractor_ranks(np.array([0.5]), np.array([0]), neighbours([[0.5, 0.1]])).tolist() == [2]


@pytest.mark.parametrize("fpir", [0.05, 0.1, 0.25, 1.0])
@pytest.mark.parametrize("rank", [1, 3])
def test_tpir_at_fpir_equals_trying_every_threshold(fpir: float, rank: int) -> None:
    probes, probe_identity, gallery, gallery_identity = make(2)
    found = nearest(probes, [gallery], 16)
    scores = cosines(probes, gallery)
    best = 0.0
    for threshold in [*scores.ravel(), 2.0]:
        false = [max(s) >= threshold - 1e-6 for s, p in zip(scores, probe_identity, strict=True) if p >= 8]
        if np.mean(false) > fpir:
            continue
        hits = []
        for row, person in zip(scores, probe_identity, strict=True):
            if person < 8:
                mate = max(row[gallery_identity == person])
                hits.append(mate >= threshold - 1e-6 and np.sum(row[gallery_identity != person] >= mate) < rank)
        best = max(best, float(np.mean(hits)))
    assert tpir_at_fpir(found, probe_identity, gallery_identity, fpir, rank) == pytest.approx(best)


def test_rates_without_people_for_them_are_refused() -> None:
    probes, probe_identity, gallery, gallery_identity = make()
    found = nearest(probes, [gallery], 4)
    with pytest.raises(ValueError, match=r"fpir: got 0.01 with 20 searches for people outside the gallery"):
        tpir_at_fpir(found, probe_identity, gallery_identity, 0.01)
    with pytest.raises(ValueError, match=r"got no probe whose identity is in the gallery"):
        tpir_at_fpir(found, probe_identity + 50, gallery_identity, 0.5)


def neighbours(scores: list[list[float]], highest: list[float] | None = None, compared: int = 0) -> Neighbours:
    array = np.array(scores, np.float32)
    return Neighbours(array, np.zeros(array.shape, np.int64), np.array(highest or [], np.float32), compared)


@pytest.mark.parametrize("seed", range(3))
def test_distractors_equal_a_loop_over_all_of_them(seed: int) -> None:
    """MegaFace in its paper's words: hide each mate among the distractors, search with the person's other probes."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(6, 5))
    identity = np.repeat(np.arange(6), 4)
    probes = centres[identity] + 0.5 * generator.normal(size=(24, 5))
    distractors = generator.normal(size=(300, 5))
    trials = [(i, j) for i in range(24) for j in range(24) if i != j and identity[i] == identity[j]]
    rivals = cosines(probes, distractors)
    mates = np.array([cosines(probes[i : i + 1], probes[j : j + 1])[0, 0] for i, j in trials])
    found = nearest(probes, blocks_of(distractors, 64), k=10, highest=100)
    ranks = distractor_ranks(mates, np.array([i for i, _ in trials]), found)
    expected = [1 + int(np.sum(rivals[i] >= m)) for (i, _), m in zip(trials, mates, strict=True)]
    assert ranks.tolist() == [rank if rank <= 10 else UNRANKED for rank in expected]
    assert found.compared == 7200
    for far, allowed in ((1 / 7200, 1), (0.001, 7), (0.01, 72)):
        barrier = np.sort(rivals.ravel())[::-1][allowed]
        assert distractor_tar(mates, found, far) == np.mean(mates > barrier)


def test_a_far_that_the_distractors_cannot_show_is_refused() -> None:
    found = neighbours([[0.5]], highest=[0.9, 0.8], compared=1000)
    assert distractor_tar(np.array([0.85, 0.95]), found, 0.001) == 1.0
    with pytest.raises(ValueError, match=r"far: got 0.0005 with 1000 pairs of probe and distractor"):
        distractor_tar(np.array([0.85]), found, 0.0005)
    with pytest.raises(ValueError, match=r"got the 2 highest scores, wanted 3 for a FAR of 0.002"):
        distractor_tar(np.array([0.85]), found, 0.002)


def test_the_barrier_of_all_impostors_is_open() -> None:
    assert highest_rejected(np.array([0.1, 0.2]), 1.0, 2) == -np.inf
    assert highest_rejected(np.array([0.1, 0.2]), 0.5, 2) == 0.1
    assert highest_rejected(np.arange(49.0), 1 / 49, 49) == 47  # 1/49 × 49 is a rounding below 1


def test_a_mate_that_scores_as_an_impostor_that_must_be_rejected_is_rejected_too() -> None:
    # One stranger's search may raise an alarm, the second, at 0.5, may not.
    found = neighbours([[0.5, 0.1], [0.9, 0.1], [0.5, 0.2]])
    assert tpir_at_fpir(found, np.array([0, 8, 9]), np.array([0, 1]), fpir=0.5) == 0
    assert distractor_tar(np.array([0.75]), neighbours([[0.5]], [0.9, 0.75], 1000), 0.001) == 0


def test_identify_reports_the_rates_of_every_trial_with_intervals() -> None:
    generator = np.random.default_rng(5)
    centres = generator.normal(size=(7, 6))
    identity = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4, 5, 5, 6, 6])
    probes = (centres[identity] + 0.6 * generator.normal(size=(16, 6))).astype(np.float32)
    distractors = generator.normal(size=(200, 6)).astype(np.float32)
    found = identify(probes, identity, blocks_of(distractors, 32), 200, 5, (0.01, 0.001), resamples=30, seed=2)
    rivals, mates = cosines(probes, distractors), cosines(probes, probes)
    trials = [(i, j) for i in range(16) for j in range(16) if i != j and identity[i] == identity[j]]
    ranks = np.array([1 + np.sum(rivals[i] >= mates[i, j]) for i, j in trials])
    scores = np.array([mates[i, j] for i, j in trials])
    assert found.trials == len(trials) == 26
    np.testing.assert_allclose([rate.value for rate in found.cmc], [np.mean(ranks <= r) for r in range(1, 6)])
    for entry, allowed in zip(found.tar, (32, 3), strict=True):
        barrier = np.sort(rivals.ravel())[::-1][allowed]
        assert entry.tar.value == np.mean(scores > barrier)
        assert entry.threshold == pytest.approx(barrier, abs=1e-6)

    # The bootstrap, literally: draw people with trials, put their trials together, average.
    people = np.array([0, 1, 2, 4, 5, 6])
    person = np.array([identity[i] for i, _ in trials])
    generator = np.random.default_rng(2)
    drawn = [people[generator.integers(6, size=6)] for _ in range(30)]
    first = [np.mean(np.concatenate([ranks[person == p] for p in draw]) <= 1) for draw in drawn]
    around = np.quantile(first, [0.025, 0.975]) - np.mean(first) + np.mean(ranks <= 1)
    np.testing.assert_allclose((found.cmc[0].low, found.cmc[0].high), around)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_network_finds_nobody_and_is_not_refused(value: float) -> None:
    """It gives zeros, or the same for every face: all scores are equal, and a tie counts against the mate."""
    rows = np.full((5, 4), value, np.float32)
    found = identify(rows, np.array([0, 0, 1, 1, 1]), [rows], 5, 5, (0.1,), 5)
    assert [rate.value for rate in found.cmc] == [0] * 5
    assert found.tar[0].tar.value == 0


def test_identify_refuses_what_it_cannot_show() -> None:
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match=r"far: got 0.001 with 6 pairs of probe and distractor"):
        identify(rows[:2], np.array([0, 0]), [rows], 3, 1, (0.001,), 5)
    with pytest.raises(ValueError, match=r"probes: got 2 images, no two of one person"):
        identify(rows[:2], np.array([0, 1]), [rows], 3, 1, (0.5,), 5)
