"""`stages/ijb.py` on loose crops as they are distributed: its numbers equal a loop in the protocol's words."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from cluster.stop import EXIT_REFUSED
from pipeline.shards.alignment.similarity import reference_points
from tests.end_to_end.stage import run_stage
from tests.linear_network import by_hand, write_linear

SIZE = (112, 96)
PEOPLE, IMAGES = 8, 5


@dataclass
class Scene:
    """IJB-B in small: image i shows person `i // IMAGES`, whose images 0, 1, 2 are one template, and 3, 4 another."""

    folder: Path
    faces: np.ndarray
    matrix: np.ndarray
    scores: np.ndarray

    def templates(self, rule: str) -> np.ndarray:
        """Features `[2 * PEOPLE, D]` of the templates in order; images 1 and 2 of a person are frames of one video."""
        image, mirror = by_hand(self.faces, self.matrix)
        rows = image + mirror if rule == "N1D1F2" else np.concatenate([image, mirror], axis=1)
        if rule == "N1D1F2":
            rows = rows * self.scores[:, None]
        found = []
        for person in range(PEOPLE):
            own = rows[person * IMAGES : (person + 1) * IMAGES]
            found += [own[0] + (own[1] + own[2]) / 2, own[3] + own[4]]
        return np.array(found)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("ijb")
    generator = np.random.default_rng(0)
    base = generator.integers(0, 256, (PEOPLE, *SIZE, 3))
    noisy = base.repeat(IMAGES, axis=0) + generator.normal(0, 200, (PEOPLE * IMAGES, *SIZE, 3))
    faces = noisy.clip(0, 255).astype(np.uint8)
    scores = generator.uniform(0.2, 1, len(faces)).round(3)
    for name in ("loose", "aligned", "meta"):
        (folder / name).mkdir()
    media, points = [], []
    for i, face in enumerate(faces):
        x, y = generator.integers(0, 30, 2)
        photo = np.zeros((150, 130, 3), np.uint8)
        photo[y : y + 112, x : x + 96] = face
        Image.fromarray(photo).save(folder / "loose" / f"{i} #.png")
        Image.fromarray(face).save(folder / "aligned" / f"{i} #.png")
        person, shot = divmod(i, IMAGES)
        template = 10 * person + (shot >= 3)
        media.append(f"{i} #.png {template} {i - (shot == 2)}")
        flat = " ".join(map(str, (reference_points(*SIZE) + np.array([x, y])).ravel().tolist()))
        points.append(f"{i} #.png {flat} {scores[i]}")
    meta = {
        "face_tid_mid.txt": media,
        "name_5pts_score.txt": points,
        "template_pair_label.txt": [
            f"{10 * p} {10 * q + 1} {int(p == q)}" for p in range(PEOPLE) for q in range(PEOPLE)
        ],
        "1N_gallery_S1.csv": ["FILENAME,TEMPLATE_ID,SUBJECT_ID", *(f"x,{10 * p},{p}" for p in range(3))],
        "1N_gallery_S2.csv": ["TEMPLATE_ID,SUBJECT_ID", *(f"{10 * p},{p}" for p in range(3, 6))],
        "1N_probe_mixed.csv": ["TEMPLATE_ID,SUBJECT_ID", *(f"{10 * p + 1},{p}" for p in range(PEOPLE))],
    }
    for name, lines in meta.items():
        (folder / f"meta/ijbb_{name}").write_text("\n".join(lines) + "\n")
    return Scene(folder, faces, write_linear(folder / "net.onnx", SIZE), scores)


def cosines(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.array([[a @ b / np.sqrt(a @ a * (b @ b)) for b in others] for a in rows])


OPTIONS = ["--onnx", "net.onnx", "--set", "ijbb", "--meta", "meta", "--resamples", "10", "--far", "0.1"]


@pytest.mark.parametrize("rule", ["N1D1F2", "N1D0F1"])
def test_its_rates_equal_a_loop_by_the_rule(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rule: str
) -> None:
    monkeypatch.chdir(scene.folder)
    assert run_stage("ijb.py", "run", *OPTIONS, "--images", "loose", "--align", "--fuse", rule, "--fpir", "0.4") == 0
    printed = capsys.readouterr()
    folder = "ijbb" if rule == "N1D0F1" else f"ijbb {rule}"
    result = json.loads(Path(f"run/ijb/{folder}/step-00000000.json").read_text())
    assert (result["templates"], result["genuine"], result["impostors"], result["fusion"]) == (16, 8, 56, rule)

    templates = scene.templates(rule)
    first, second = templates[::2], templates[1::2]
    table = cosines(first, second)
    impostors = np.sort(table[~np.eye(PEOPLE, dtype=bool)])[::-1]
    assert result["tar"][0]["tar"]["value"] == np.mean(np.diag(table) > impostors[5])
    rates = []
    for members in ([0, 1, 2], [3, 4, 5]):
        search = cosines(second, first[members])
        mates = np.array([row[members.index(p)] if p in members else np.nan for p, row in enumerate(search)])
        rank = np.array([np.sum(row >= mate) for row, mate in zip(search, mates, strict=True)])[members]
        strangers = [p for p in range(PEOPLE) if p not in members]
        alarm = np.sort(search[strangers].max(axis=1))[::-1][2]  # of five, two may raise an alarm
        closed = [np.mean(rank <= r) for r in (1, 5, 10)]
        rates.append([*closed, np.mean((rank == 1) & (mates[members] > alarm))])
    rates.append(np.mean(rates, axis=0).tolist())
    for gallery, expected in zip(result["galleries"], rates, strict=True):
        found = [*gallery["ranks"], *(entry["tpir"] for entry in gallery["tpir"])]
        np.testing.assert_allclose([rate["value"] for rate in found], expected, atol=1e-12)
    assert [gallery["name"] for gallery in result["galleries"]] == ["S1", "S2", "mean of S1 and S2"]
    for words in ("1:1 TAR at FAR 0.1", "S1 rank-1", "S2 TPIR at FPIR 0.4", "mean of S1 and S2 rank-10"):
        assert words in printed.out


def test_aligned_crops_and_embeddings_made_elsewhere_give_the_same_and_the_report_shows_the_roc(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(scene.folder)
    image, mirror = by_hand(scene.faces, scene.matrix)
    names = np.array([f"{i} #.png" for i in range(len(scene.faces))])
    np.savez("made.npz", paths=names, embeddings=np.concatenate([image, mirror], axis=1))
    judged = [*OPTIONS[2:], "--fpir", "0.4", "--images", "aligned"]
    assert run_stage("ijb.py", "own", "--onnx", "net.onnx", *judged) == 0
    assert run_stage("ijb.py", "made", "--embeddings", "made.npz", *judged) == 0
    assert run_stage("ijb.py", "made", "--embeddings", "made.npz", *judged, "--fuse", "N1D1F1") == 0
    own, made = (json.loads(Path(f"{run}/ijb/ijbb/step-00000000.json").read_text()) for run in ("own", "made"))
    assert own["tar"][0]["tar"] == made["tar"][0]["tar"]
    assert own["galleries"] == made["galleries"]
    for rank in ("1", "0"):  # of two, a launcher's; the second only embeds
        place = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.evaluation.embedding.kept.PART", 16)
            for name, value in place.items():
                patch.setenv(name, value)
            assert run_stage("ijb.py", "ranks", "--onnx", "net.onnx", *judged, f"--local_rank={rank}") == 0
        assert len(list(Path("ranks/embeddings").rglob("*.npy"))) == (3 if rank == "0" else 1)
        assert Path("ranks/ijb").exists() == (rank == "0")
    assert json.loads(Path("ranks/ijb/ijbb/step-00000000.json").read_text()) == own
    assert run_stage("report.py", "own", "made", "--out", "both.html") == 0
    page = Path("both.html").read_text()
    for rate in ("TAR at FAR 0.1", "S1, rank 1", "mean of S1 and S2, TPIR at FPIR 0.4"):
        row = page.partition(f"{rate} above own, points")[2].partition("</tr>")[0]
        assert "+0.00 (+0.0 to +0.0)" in row  # they are one network
    for words in ("ROC of templates", "mean of S1 and S2, rank 1", "S2, TPIR at FPIR 0.4", "fused by the rule N1D1F1"):
        assert words in page
    capsys.readouterr()
    for options, words in (
        (["--fuse", "N1D1F2"], "fuse: got N1D1F2 with embeddings made elsewhere, wanted F1"),
        (["--align"], "align: got embeddings made elsewhere, wanted a network"),
        (["--far", "0.01"], "far: got 0.01 with 56 different pairs"),
        (["--fpir", "0.01"], "fpir: got 0.01 with 5 probes outside S1"),
    ):
        assert run_stage("ijb.py", "made", "--embeddings", "made.npz", *judged, *options) == EXIT_REFUSED
        assert words in capsys.readouterr().err
    assert run_stage("ijb.py", "made", *judged, "--fuse", "F2") == 2
    assert "fusion: got 'F2', wanted letters such as N1D1F2" in capsys.readouterr().err


def test_a_template_whose_images_are_broken_costs_itself_and_what_is_missing_is_said(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("loose", "meta"):
        (tmp_path / name).mkdir()
        for file in (scene.folder / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    for image in (8, 9):  # the second template of person 1
        Path(f"loose/{image} #.png").write_bytes(b"no image")
    Path("meta/ijbb_1N_gallery_S2.csv").unlink()
    net = str(scene.folder / "net.onnx")
    assert run_stage("ijb.py", "run", "--onnx", net, *OPTIONS[2:], "--images", "loose", "--align", "--fpir", "0.4") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ijb: ")]
    assert lines == [
        "ijb: meta/ijbb_1N_gallery_S2.csv: not found: no 1:N search of it",
        "ijb: 2 of 40 images left out: 8 #.png cannot be decoded, 9 #.png cannot be decoded: "
        "wanted images 112 high and 96 wide",
        "ijb: 8 of 64 pairs left out: their templates have no image with features",
        "ijb: 1 of 8 probes left out: their templates have no image with features",
    ]
    Path("meta/ijbb_name_5pts_score.txt").unlink()
    options = ["--onnx", net, *OPTIONS[2:], "--images", "loose", "--fpir", "0.4"]
    assert run_stage("ijb.py", "run", *options, "--fuse", "N1D1F1") == EXIT_REFUSED
    assert "meta: got no ijbb_name_5pts_score.txt, wanted it for --align and D1" in capsys.readouterr().err


def test_a_broken_image_costs_no_rate(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five probes outside a gallery a FPIR of 0.2 is one; of the four that are left no rate is as low."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "aligned").mkdir()
    for file in (scene.folder / "aligned").iterdir():
        (tmp_path / "aligned" / file.name).write_bytes(file.read_bytes())
    for image in (38, 39):  # the second template of the last person
        Path(f"aligned/{image} #.png").write_bytes(b"no image")
    places = ["--onnx", scene.folder / "net.onnx", "--meta", scene.folder / "meta", "--images", "aligned"]
    rates = ["--far", "0.1", "--fpir", "0.2", "0.4", "--resamples", "10", "--set", "ijbb"]
    assert run_stage("ijb.py", "run", *places, *rates) == 0
    galleries = json.loads(Path("run/ijb/ijbb/step-00000000.json").read_text())["galleries"]
    assert [[entry["fpir"] for entry in gallery["tpir"]] for gallery in galleries] == [[0.4]] * 3
