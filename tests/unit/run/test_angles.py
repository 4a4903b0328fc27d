"""Target cosines by position of training: means by sample as counted one by one, and the list of suspects."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.files import NotWrittenError
from pipeline.reading.order import Order
from pipeline.reading.tars import ShardSet
from pipeline.run.angles import EPOCHS, TargetCosines, read_suspects, write_suspects
from pipeline.shards.views.hygiene import clean
from pipeline.shards.views.undecodable import read_undecodable
from tests.faces import write_shards

# 26 samples in batches of 8: three steps an epoch, and two samples that an epoch leaves out.
ORDER = Order((10, 9, 7), seed=2, global_batch=8, streams=2)


def cosines_of(step: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    generator = np.random.default_rng(step)
    cosine_G = generator.uniform(-1, 1, 8).astype(np.float16).astype(np.float32)
    cosine_G[generator.random(8) < 0.2] = np.nan
    return cosine_G


@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_means_are_those_of_the_last_epochs(tmp_path: Path, epoch: int) -> None:
    kept = TargetCosines(tmp_path / "cosines", ORDER, "ab")
    seen: dict[int, list[float]] = defaultdict(list)
    for step in range(3 * (epoch + 1)):
        cosine_G = cosines_of(step)
        kept.put(step, cosine_G)
        if step // 3 > epoch - EPOCHS:
            for sample, cosine in zip(ORDER.batch(step).tolist(), cosine_G.tolist(), strict=True):
                seen[sample] += [] if np.isnan(cosine) else [cosine]
    want = [np.mean(seen[sample]) if seen[sample] else np.nan for sample in range(26)]
    np.testing.assert_allclose(kept.means(epoch), np.array(want), rtol=1e-6, atol=1e-6)
    assert len(list((tmp_path / "cosines").iterdir())) == min(epoch + 1, EPOCHS)
    assert sum(file.stat().st_size for file in (tmp_path / "cosines").iterdir()) == 2 * 24 * min(epoch + 1, EPOCHS)


def test_a_run_that_goes_back_leaves_what_one_that_did_not_leaves(tmp_path: Path) -> None:
    whole, back = (TargetCosines(tmp_path / name, ORDER, "ab") for name in ("whole", "back"))
    for step in range(6):
        whole.put(step, cosines_of(step))
    for step in (0, 1, 2, 3, 4):
        back.put(step, -cosines_of(step))
    for step in range(6):
        back.put(step, cosines_of(step))
    np.testing.assert_array_equal(whole.means(1), back.means(1))


def test_what_stood_in_another_set_is_of_other_samples(tmp_path: Path) -> None:
    """Sample 3 was cleaned away, so that what was sample 20 is 19; an epoch has as many steps as before."""
    cleaned = replace(ORDER, samples_per_tar=(9, 9, 7))
    for epoch, digest, order, doubtful in ((0, "ab", ORDER, 20), (1, "cd", cleaned, 19)):
        kept = TargetCosines(tmp_path, order, digest)
        for step in range(3 * epoch, 3 * epoch + 3):
            kept.put(step, np.where(order.batch(step) == doubtful, -0.5, 0.5).astype(np.float32))
    means = kept.means(1)
    assert np.flatnonzero(means < 0.5).tolist() == [19] and means[19] == -0.5


def test_epochs_without_a_file_are_passed_over(tmp_path: Path) -> None:
    kept = TargetCosines(tmp_path / "cosines", ORDER, "ab")
    kept.put(3, np.full(8, 0.5, np.float32))
    means = kept.means(1)
    assert (means[ORDER.batch(3)] == 0.5).all()
    assert np.isnan(means).sum() == 18
    assert np.isnan(kept.means(1 + EPOCHS)).all(), "an older one does not count"
    (file,) = (tmp_path / "cosines").iterdir()
    os.truncate(file, file.stat().st_size - 2)  # as a full disk leaves it
    assert np.isnan(kept.means(1)).all()


def test_a_disk_that_takes_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "cosines").touch()
    with pytest.raises(NotWrittenError, match="cosines"):
        TargetCosines(tmp_path / "cosines", ORDER, "ab").put(0, cosines_of(0))


def test_suspects_are_listed_by_angle_and_clean_leaves_them_out(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, identities=4, images=4)
    shards = ShardSet(folder)
    mean_cosine = np.full(16, 0.9, np.float32)
    mean_cosine[[3, 7, 11, 12]] = [0.2, -0.5, np.nan, np.cos(np.deg2rad(74.9))]
    assert write_suspects(tmp_path / "none.tsv", shards, np.zeros(16, np.float32), 90) == 0, "above it, not at it"
    assert write_suspects(tmp_path / "suspects.tsv", shards, mean_cosine, 75) == 2
    digest = shards.manifest.digest
    assert read_suspects(tmp_path / "suspects.tsv", digest) == [(7, 120.0), (3, 78.5)]
    assert read_suspects(tmp_path / "suspects.tsv", "0" * 64) == []
    assert read_undecodable(tmp_path / "suspects.tsv", shards.manifest) == [3, 7]
    cleaned = clean(folder, tmp_path / "clean", suspects=tmp_path / "suspects.tsv")
    assert cleaned.left_out == {"far from its identity in training": 2}
    assert cleaned.manifest.samples == 14
