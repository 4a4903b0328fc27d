"""`stages/identify.py` with galleries, lists and noise: numbers equal a loop, and what is odd is refused or said."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from cluster.stop import EXIT_REFUSED
from pipeline.evaluation.results import Identification, load_identification
from tests.end_to_end.stage import run_stage
from tests.linear_network import by_hand, write_linear

SIZE = (24, 20)
PEOPLE, SHOTS = 7, 4  # in the gallery are the first shots of the first four


@dataclass
class Scene:
    """Staff (person 0 to 3, shot 0), visitors (all others), and 12 crowd images in a flat folder; features by hand."""

    staff: dict[str, np.ndarray]
    visitors: dict[str, np.ndarray]
    crowd: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identify")


@pytest.fixture(scope="module")
def scene(folder: Path) -> Scene:
    generator = np.random.default_rng(3)
    base = generator.integers(0, 256, (PEOPLE, *SIZE, 3))
    pixels: dict[str, dict[str, np.ndarray]] = {"staff": {}, "visitors": {}, "crowd": {}}
    for person in range(PEOPLE):
        for shot in range(SHOTS):
            kind = "staff" if person < 4 and shot == 0 else "visitors"
            noisy = base[person] + generator.normal(0, 160, (*SIZE, 3))
            pixels[kind][f"p{person}/{shot} #.png"] = noisy.clip(0, 255).astype(np.uint8)
    for number in range(12):
        pixels["crowd"][f"{number}.png"] = generator.integers(0, 256, (*SIZE, 3), np.uint8)
    (folder / "strangers/p9").mkdir(parents=True)
    (folder / "strangers/p9/0.png").write_bytes(b"")
    matrix = write_linear(folder / "net.onnx", SIZE)
    features = {}
    for kind, images in pixels.items():
        for name, image in images.items():
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / kind / name)
        rows = np.concatenate(by_hand(np.array(list(images.values())), matrix), axis=1)
        features[kind] = dict(zip(images, rows, strict=True))
    return Scene(**features)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt(a @ a * (b @ b)))


def result(name: str) -> Identification:
    return load_identification(Path(f"run/identifications/{name}/step-00000000.json"))


RUN = ["run", "--onnx", "net.onnx", "--resamples", "10", "--ranks", "3"]
SEARCH = [*RUN, "--probes", "visitors", "--gallery", "staff"]


def test_a_gallery_is_searched_for_people_in_it_and_outside(
    folder: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert run_stage("identify.py", *SEARCH, "--distractors", "crowd", "--fpir", "0.25", "0.1") == 0
    printed = capsys.readouterr()
    found = result("staff")
    assert (found.trials, found.identities, found.gallery, found.distractors, found.strangers) == (12, 4, 4, 12, 12)
    ranks, mates, alarms = [], [], []
    for name, probe in scene.visitors.items():
        scores = {other: cosine(probe, row) for other, row in scene.staff.items()}
        rivals = [score for other, score in scores.items() if other[:2] != name[:2]]
        rivals += [cosine(probe, row) for row in scene.crowd.values()]
        if int(name[1]) < 4:
            mates.append(scores[f"{name[:2]}/0 #.png"])
            ranks.append(1 + sum(rival >= mates[-1] for rival in rivals))
        else:
            alarms.append(max(rivals))
    assert [rate.value for rate in found.cmc] == [np.mean([rank <= r for rank in ranks]) for r in (1, 2, 3)]
    for entry, allowed in zip(found.tpir, (3, 1), strict=True):
        barrier = sorted(alarms)[::-1][allowed]
        hits = [rank == 1 and mate > barrier for rank, mate in zip(ranks, mates, strict=True)]
        assert entry.tpir.value == np.mean(hits)
    assert 0 < found.tpir[1].tpir.value < found.cmc[0].value < 1
    assert "4 people among 4 images and 12 distractors, and 12 for people who are not there" in printed.out
    assert "TPIR at FPIR 0.25" in printed.out
    assert run_stage("report.py", "run", "--out", "page.html") == 0
    page = Path("page.html").read_text()
    for words in ("Identification in staff", "a gallery of 4 images and 12 distractors", "TPIR at FPIR 0.1"):
        assert words in page


def test_lists_name_people_and_noise_is_left_out(
    folder: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same search with flat folders, whose people a list of each form names; two visitors are noise."""
    monkeypatch.chdir(folder)
    savemat = pytest.importorskip("scipy.io").savemat
    names: dict[str, list[str]] = {"staff": [], "visitors": []}
    for kind in ("staff", "visitors"):
        Path(f"flat {kind}").mkdir()
        for path in getattr(scene, kind):
            flat = path.replace("/", "_")
            names[kind].append(flat)
            Path(f"flat {kind}/{flat}").write_bytes(Path(kind, path).read_bytes())
    people = {kind: [flat[:2] for flat in flats] for kind, flats in names.items()}
    cells = {end: np.empty((len(names["staff"]), 1), object) for end in ("set", "ids")}
    cells["set"][:, 0], cells["ids"][:, 0] = names["staff"], people["staff"]
    savemat("gallery_img_ID_pairs.mat", {f"gallery_{end}": cell for end, cell in cells.items()})
    Path("probes.json").write_text(json.dumps({"path": names["visitors"], "id": people["visitors"]}))
    Path("noise.txt").write_text("# noise\np0_1 #.png\np6_3 #.png\nelsewhere.png\n")
    search = [*RUN, "--probes", "flat visitors", "--gallery", "flat staff", "--fpir", "0.25"]
    lists = ["--probe-list", "probes.json", "--gallery-list", "gallery_img_ID_pairs.mat"]
    assert run_stage("identify.py", *search, *lists, "--name", "listed") == 0
    assert run_stage("identify.py", *SEARCH, "--fpir", "0.25", "--name", "folders") == 0
    assert result("listed").cmc == result("folders").cmc
    assert result("listed").tpir == result("folders").tpir
    assert run_stage("identify.py", *search, *lists, "--noise", "noise.txt", "--name", "clean") == 0
    printed = capsys.readouterr()
    assert "identify: 2 of 24 images in flat visitors are noise" in printed.err
    assert "identify: 0 of 4 images in flat staff are noise" in printed.err
    assert (result("clean").trials, result("clean").strangers) == (11, 11)
    assert run_stage("identify.py", *search) == EXIT_REFUSED
    message = "--probes: got 24 of 24 images without a person, such as p0_1 #.png in flat visitors, wanted a folder for"
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("scene")
def test_people_among_the_distractors_are_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert run_stage("identify.py", *RUN, "--probes", "visitors", "--distractors", "staff", "--far", "0.1") == 0
    words = "identify: 4 people are distractors, too, and so their own rivals: p0, p1, p2, p3"
    assert words in capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("scene")
def test_probes_that_find_themselves_are_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    options = ["--probes", folder / "staff", "--gallery", "staff", "--name", "itself"]
    assert run_stage("identify.py", *RUN, *map(str, options)) == 0
    words = "identify: 4 of 4 probes are files of the gallery, and find themselves"
    assert words in capsys.readouterr().err.splitlines()
    assert run_stage("identify.py", *SEARCH, "--fpir", "0.25", "--name", "others") == 0
    assert "find themselves" not in capsys.readouterr().err
    Path("twice.txt").write_text("p5/0 #.png\np6/0 #.png\np6/1 #.png\np6/0 #.png\n")
    options = ["--probes", "visitors", "--probe-list", "twice.txt", "--distractors", "crowd", "--name", "twice"]
    assert run_stage("identify.py", *RUN, *options) == 0
    words = "identify: 1 of 4 probes are listed once more, and find themselves"
    assert words in capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--probes", "visitors"], "got neither --gallery nor --distractors, wanted one"),
        (
            ["--probes", "visitors", "--gallery", "staff", "--far", "0.1"],
            "far: got it with --gallery, wanted --fpir",
        ),
        (
            ["--probes", "visitors", "--distractors", "crowd", "--fpir", "0.1"],
            "fpir: got it without --gallery, wanted --far",
        ),
        (["--probes", "crowd", "--distractors", "staff"], "--probes: got 12 of 12 images without a person"),
        (["--probes", "visitors", "--gallery", "crowd"], "--gallery: got 12 of 12 images without a person"),
        (
            ["--probes", "visitors", "--gallery", "staff", "--fpir", "0.01"],
            "fpir: got 0.01 with 12 searches for people",
        ),
        (["--probes", "staff", "--distractors", "crowd"], "staff: got 4 images, no two of one person, wanted some"),
        (["--probes", "strangers", "--gallery", "staff"], "strangers: got nobody who is in staff, wanted some to find"),
        (["--probes", "visitors", "--gallery", "staff", "--distractor-list", "l"], "l: got a list without a folder"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    assert run_stage("identify.py", *RUN, *options) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("identify: ") and message in line


@pytest.mark.usefixtures("scene")
def test_a_broken_image_costs_no_rate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten probes among ten distractors resolve a FAR of 0.01; when one is broken, 0.1 is the lowest power of ten."""
    monkeypatch.chdir(folder)
    Path("probes.txt").write_text("".join(f"p{person}/{shot} #.png\n" for person in (4, 5, 6) for shot in range(3)))
    with Path("probes.txt").open("a") as lines:
        lines.write("p3/1 #.png\n")
    Path("ten").mkdir()
    for number in range(10):
        Path(f"ten/{number}.png").write_bytes(Path(f"crowd/{number}.png").read_bytes() if number else b"no image")
    among = [*RUN, "--probes", "visitors", "--probe-list", "probes.txt", "--distractors", "ten"]
    assert run_stage("identify.py", *among) == 0
    assert [entry.far for entry in result("ten").tar] == [0.1] and result("ten").distractors == 9
    assert run_stage("identify.py", *among, "--far", "0.01", "0.5", "--name", "asked") == 0
    assert [entry.far for entry in result("asked").tar] == [0.5]
