"""Samples whose label was changed are far from their identity once a run has learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.head.margins.arcface import ArcFace
from pipeline.optim.sgd import SGD
from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Data, Head, Log, Recipe
from pipeline.run.angles import read_suspects
from pipeline.run.folder import RunFolder
from tests.distributed.ranks import run_ranks
from tests.faces import write_faces
from tests.label_noise import angles_by_epoch, is_mislabelled, write_mislabelled

PEOPLE, IMAGES, SHARE = 12, 20, 0.1


def recipe(shards: Path) -> Recipe:
    return Recipe(
        seed=1,
        data=Data(shards=shards, global_batch=24, streams=2, decode_threads=1),
        backbone=SphereFaceBackbone(name="sphereface4", embedding_dim=16),
        head=Head(margin=ArcFace(scale=16, angle=0.2)),
        optimizer=SGD(steps=60, learning_rate=0.02),
        log=Log(suspect_degrees=75),
    )


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces"), PEOPLE, IMAGES)


def test_as_many_labels_are_wrong_as_was_asked_for(faces: Path, tmp_path: Path) -> None:
    shards = ShardSet(write_mislabelled(faces, tmp_path / "shards", SHARE))
    assert is_mislabelled(shards, faces).sum() == round(SHARE * PEOPLE * IMAGES)
    assert shards.manifest.identities == PEOPLE


def test_wrong_labels_are_found(faces: Path, tmp_path: Path) -> None:
    folder = write_mislabelled(faces, tmp_path / "shards", SHARE)
    (by_epoch,) = run_ranks(angles_by_epoch, 1, recipe(folder), tmp_path / "run", faces)
    assert by_epoch[-1].area() > 0.9
    shards = ShardSet(folder)
    wrong = is_mislabelled(shards, faces)
    listed = [sample for sample, _ in read_suspects(RunFolder(tmp_path / "run").suspects, shards.manifest.digest)]
    assert wrong[listed].sum() > max(0.4 * wrong.sum(), 0.9 * len(listed))
