"""A gallery with distractors, searched for people in it and outside: rates equal a loop in float64."""

import numpy as np
import pytest

from pipeline.evaluation.scoring.gallery import NOBODY, search_gallery, search_rates
from pipeline.evaluation.scoring.search import blocks_of


@pytest.mark.parametrize("seed", range(3))
def test_closed_and_open_set_rates_equal_a_loop(seed: int) -> None:
    """Ten people in the gallery with two images each, 40 distractors, and searches for these and five others."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(15, 16))
    person, owner = np.repeat(np.arange(15), 4), np.concatenate([np.repeat(np.arange(10), 2), np.full(40, NOBODY)])
    probes = (centres[person] + generator.normal(size=(60, 16))).astype(np.float32)
    gallery = generator.normal(size=(60, 16)).astype(np.float32)
    gallery[:20] += centres[owner[:20]].astype(np.float32)
    fpirs = (0.25, 0.05)
    draws = search_gallery(probes, person, blocks_of(gallery, 7), owner, 4, fpirs, resamples=20)
    closed, opened = search_rates(draws, fpirs)

    table = np.array([[p @ g / (p @ p * (g @ g)) ** 0.5 for g in gallery.astype(np.float64)] for p in probes])
    mated = person < 10
    mate = np.array([max(row[owner == who], default=-9) for row, who in zip(table, person, strict=True)])
    rank = np.array([1 + np.sum(row[owner != who] >= m) for row, who, m in zip(table, person, mate, strict=True)])
    assert [rate.value for rate in closed] == [np.mean(rank[mated] <= r) for r in (1, 2, 3, 4)]
    alarms = np.sort(table[~mated].max(axis=1))[::-1]
    for entry, allowed in zip(opened, (5, 1), strict=True):
        assert entry.tpir.value == np.mean((rank[mated] == 1) & (mate[mated] > alarms[allowed] + 1e-7))
        assert entry.tpir.low <= entry.tpir.value <= entry.tpir.high
    assert 0 < opened[1].tpir.value < opened[0].tpir.value < closed[0].value < 1


def test_a_mate_must_exceed_the_alarm_that_must_be_rejected_and_probes_are_drawn_with_their_people() -> None:
    """One person searched four times: twice nearer than the stranger's false alarm, once as near, once found last."""
    gallery = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    probes = np.array([[5, 0, 1], [3, 0, 1], [1, 0, 1], [0, 1, 0.5], [0, 1, 1]], np.float32)
    draws = search_gallery(probes, np.array([0, 0, 0, 0, 7]), [gallery], np.array([0, 1]), 1, (), 9)
    assert draws.value_K.tolist() == [0.75] and set(draws.people_BK.ravel().tolist()) == {0.75}
    strangers = np.concatenate([probes, probes[4:]])
    found = search_gallery(strangers, np.array([0, 0, 0, 0, 7, 8]), [gallery], np.array([0, 1]), 1, (0.5,), 9)
    assert found.value_K.tolist() == [0.75, 0.5]


def test_a_closed_set_has_no_open_rates_and_a_gallery_of_others_no_rates() -> None:
    rows = np.eye(3, dtype=np.float32)
    closed, opened = search_rates(search_gallery(rows, np.arange(3), [rows], np.arange(3), 2, (), 5), ())
    assert ([rate.value for rate in closed], opened) == ([1, 1], ())
    with pytest.raises(ValueError, match="got no probe whose identity is in the gallery"):
        search_gallery(rows, np.arange(3), [rows], np.arange(3, 6), 2, (), 5)
    with pytest.raises(ValueError, match=r"fpir: got 0.5 with 1 searches for people outside the gallery"):
        search_gallery(rows, np.arange(3), [rows], np.array([0, 1, 4]), 2, (0.5,), 5)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("images", [1, 2])
def test_a_collapsed_network_finds_nobody_whatever_number_of_neighbours_is_kept(value: float, images: int) -> None:
    """All rows alike: of a tie any rows are kept, the mate perhaps among them, and all others count against it."""
    gallery, probes = np.full((60, 4), value, np.float32), np.full((30, 4), value, np.float32)
    for ranks in (1, 5, 60 - images):
        found = search_gallery(probes, np.arange(30), [gallery], np.arange(60) // images, ranks, (), 3)
        assert not found.value_K.any()
    found = search_gallery(probes, np.arange(30), [gallery], np.arange(60) // images, 60, (), 3)
    assert found.value_K.tolist() == [0.0] * (60 - images) + [1.0] * images
