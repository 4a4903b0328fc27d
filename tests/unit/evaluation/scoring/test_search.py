"""Blocked search against a float64 sort of every product."""

from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.scoring import search
from pipeline.evaluation.scoring.search import blocks_of, nearest


def slow_scores(probes: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Every cosine, in float64, one pair at a time."""
    scores = np.empty((len(probes), len(gallery)))
    for i, p in enumerate(probes.astype(np.float64)):
        for j, q in enumerate(gallery.astype(np.float64)):
            scores[i, j] = np.sum(p * q) / (np.sum(p * p) * np.sum(q * q)) ** 0.5
    return scores


def make(probes: int, gallery: int, width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = generator.normal(size=(probes, width)), generator.normal(size=(gallery, width))
    return shape[0].astype(np.float32), shape[1].astype(np.float32)


@pytest.mark.parametrize("rows", [1, 7, 16, 50, 64])
@pytest.mark.parametrize("k", [1, 5, 50])
def test_search_equals_sorting_every_cosine(rows: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "TILE", 4)
    probes, gallery = make(11, 50)
    found = nearest(probes, blocks_of(gallery, rows), k, highest=40)
    expected = slow_scores(probes, gallery)
    order = np.argsort(-expected, axis=1)[:, :k]
    np.testing.assert_array_equal(found.index_PK, order)
    np.testing.assert_allclose(found.scores_PK, np.take_along_axis(expected, order, axis=1), atol=1e-6)
    np.testing.assert_allclose(found.highest, np.sort(expected.ravel())[::-1][:40], atol=1e-6)
    assert found.compared == 11 * 50


def test_k_and_highest_beyond_the_gallery_give_all_of_it() -> None:
    probes, gallery = make(3, 4)
    found = nearest(probes, blocks_of(gallery, 3), k=9, highest=99)
    assert found.scores_PK.shape == found.index_PK.shape == (3, 4)
    assert sorted(found.index_PK[0]) == [0, 1, 2, 3]
    assert found.highest.shape == (12,)


def test_the_gallery_may_be_a_file_or_a_stream(tmp_path: Any) -> None:
    probes, gallery = make(5, 30)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    found = nearest(probes, blocks_of(mapped, 8), 3)
    streamed = nearest(probes, (gallery[i : i + 8] for i in range(0, 30, 8)), 3)
    np.testing.assert_array_equal(found.index_PK, streamed.index_PK)
    assert len(found.highest) == 0


def test_scaling_a_row_changes_nothing() -> None:
    probes, gallery = make(5, 30)
    one, other = nearest(probes, [gallery], 4), nearest(probes * 3, [gallery * 0.01], 4)
    np.testing.assert_array_equal(one.index_PK, other.index_PK)


def test_rows_of_zeros_are_like_nothing() -> None:
    probes, gallery = make(3, 20)
    gallery[17] = probes[1] = 0
    found = nearest(probes, blocks_of(gallery, 8), 20)
    assert (found.scores_PK[1] == 0).all()
    for probe in (0, 2):
        assert found.scores_PK[probe, found.index_PK[probe] == 17] == 0
        assert np.count_nonzero(found.scores_PK[probe]) == 19


def test_bad_rows_are_named() -> None:
    probes, gallery = make(3, 20)
    gallery[17, 2] = np.inf
    with pytest.raises(ValueError, match=r"gallery: row 17 has norm inf, wanted a finite one"):
        nearest(probes, blocks_of(gallery, 8), 1)
    with pytest.raises(ValueError, match=r"probe: row 0 has norm nan"):
        nearest(np.full((1, 6), np.nan), [gallery[:3]], 1)
    with pytest.raises(ValueError, match=r"gallery: got rows of shape \(5,\), wanted \(6,\)"):
        nearest(probes, [gallery[:4, :5]], 1)
    with pytest.raises(ValueError, match=r"gallery: got no rows"):
        nearest(probes, [], 1)
    with pytest.raises(ValueError, match=r"k: got 0"):
        nearest(probes, [gallery[:4]], 0)


@pytest.mark.parametrize("rows", [1, 4, 7, 100])
def test_regrouping_keeps_every_row_in_order(rows: int) -> None:
    array = np.arange(46).reshape(23, 2)
    blocks = list(search.regrouped((array[i : i + 3] for i in range(0, 23, 3)), rows))
    np.testing.assert_array_equal(np.concatenate(blocks), array)
    assert all(len(block) >= min(rows, 23) for block in blocks[:-1])
