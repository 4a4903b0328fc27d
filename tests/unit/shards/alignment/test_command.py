"""`stages/align.py`, with a detector that finds a face in the middle of everything."""

import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.shards.alignment.detector import Face
from pipeline.shards.alignment.similarity import reference_points
from stages.align import main
from tests.shards import noise, write_tar_of

FACE = Face(np.array([0.0, 0, 96, 112]), reference_points(112, 96))


@pytest.fixture(autouse=True)
def finds_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shards.alignment.photos.detect", lambda _photo: [FACE])
    monkeypatch.setattr("pipeline.shards.alignment.photos.BATCH", 1)


def align(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    words = ["align.py", f"file://{folder}/photos", f"{folder}/out", "--workers", "1", *options]
    monkeypatch.setattr(sys, "argv", words)
    assert main() == 0


def test_copies_of_large_files_stay_until_all_parts_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    for person in ("ann", "bob"):  # bob's are added to finished crops
        photos = [(f"{person}/{number}.jpg", noise(number, height=120, width=120)) for number in range(3)]
        write_tar_of(tmp_path / "photos" / f"{person}.tar", photos)
        align(tmp_path, monkeypatch, "--part", "0/2")
        assert (tmp_path / "out.copies" / f"{person}.tar").is_file()
        align(tmp_path, monkeypatch, "--part", "1/2")
        assert not (tmp_path / "out.copies").exists()
        assert len(list((tmp_path / "out" / person).glob("*.jpg"))) == 3
