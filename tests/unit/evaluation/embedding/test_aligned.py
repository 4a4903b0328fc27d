"""Loose crops are aligned when they are read; one that cannot be is left as it is, and so left out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from pipeline.evaluation.embedding.aligned import aligned_files
from pipeline.evaluation.embedding.kept import keep, remarks
from pipeline.evaluation.embedding.source import How, Network, image_files
from pipeline.shards.alignment.similarity import reference_points

SIZE = (112, 96)


def test_loose_crops_give_the_features_of_their_faces(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    faces = generator.integers(0, 256, (4, *SIZE, 3), np.uint8)
    names = [f"{i} #.png" for i in range(4)]
    places = generator.integers(0, 40, (4, 2))
    for folder in ("faces", "loose"):
        (tmp_path / folder).mkdir()
    for name, face, (x, y) in zip(names, faces, places, strict=True):
        Image.fromarray(face).save(tmp_path / "faces" / name)
        photo = np.full((160, 140, 3), 77, np.uint8)
        photo[y : y + 112, x : x + 96] = face
        Image.fromarray(photo).save(tmp_path / "loose" / name)
    points = reference_points(*SIZE) + places[:, None, :]
    points[3] = 5  # no face
    source = Network("tiny", "", 0, nn.Flatten(), SIZE)
    loose = aligned_files(tmp_path / "loose", names, points, SIZE, threads=2)
    found = keep(tmp_path / "kept", source, loose, How(batch_size=3))
    wanted = keep(tmp_path / "kept", source, image_files(tmp_path / "faces", names), How(batch_size=3))
    np.testing.assert_allclose(found.parts[0][:3], wanted.parts[0][:3], atol=1.01 / 128)  # a grey level
    assert remarks(found, loose, source) == [
        "1 of 4 images left out: 3 #.png is 160 × 140: wanted images 112 high and 96 wide"
    ]
    assert aligned_files(tmp_path / "loose", names, points, SIZE, 1).digest == loose.digest
    assert aligned_files(tmp_path / "loose", names, points + 1, SIZE, 1).digest != loose.digest
    assert aligned_files(tmp_path / "loose", names, points, (112, 112), 1).digest != loose.digest
    with pytest.raises(ValueError, match=r"size: got 32x32, wanted 112x96 or 112x112"):
        aligned_files(tmp_path / "loose", names, points, (32, 32), 1)
