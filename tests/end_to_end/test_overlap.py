"""`stages/overlap.py` with planted people: found, decided, left out of training and of the evaluation."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import pytest

from pipeline.evaluation.protocols.overlap import read_decisions
from pipeline.evaluation.results import Evaluation, load
from tests.end_to_end.browser import CHROMIUM
from tests.faces import ROOT, write_faces
from tests.warm_stage import run_warm

RECIPE = """
data: {shards: shards, global_batch: 8, decode_threads: 1}
backbone: {name: sphereface4, embedding_dim: 16}
optimizer: {steps: 20, learning_rate: 0.02}
log: {metrics_port: null}
"""
PLANTED = {("person001", "one"), ("person004", "four")}


def stage(folder: Path, name: str, *arguments: str) -> str:
    done = run_warm(ROOT / "stages" / name, *arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on six people; five test people, of whom two are training people under another name; their pairs."""
    folder = tmp_path_factory.mktemp("scene")
    write_faces(folder / "train", identities=6, images=6)
    write_faces(folder / "test", identities=3, images=3, seed=1)
    for train_person, test_person in PLANTED:
        (folder / "test" / test_person).mkdir()
        for shot in ("0003", "0004", "0005"):
            shutil.move(folder / f"train/{train_person}/{shot}.jpg", folder / f"test/{test_person}/{shot}.jpg")
    shots = sorted(path.relative_to(folder / "test").as_posix() for path in (folder / "test").glob("*/*"))
    lines = ["fold\tpath_a\tpath_b\tsame"]
    for i, (a, b) in enumerate(combinations(shots, 2)):
        lines.append(f"{i % 2}\t{a}\t{b}\t{int(a.split('/')[0] == b.split('/')[0])}")
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    stage(folder, "shard.py", "train", "shards")
    stage(folder, "train.py", "--recipe", "recipe.yaml", "--run", "run")
    return folder


def test_planted_people_are_found_decided_and_left_out(scene: Path) -> None:
    first = stage(scene, "overlap.py", "run", "test", "found", "--above", "0.9")
    pairs = read_decisions(scene / "found/decisions.tsv")
    assert PLANTED == {(pair.train, pair.test) for pair in pairs[:2]}
    assert f"{len(pairs)} candidate pairs, {len(pairs)} undecided" in first
    assert (scene / "found/exclude.txt").read_text() == ""
    page = (scene / "found/overlap.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == sum(
        min(4, len(list((scene / kind / name).iterdir())))
        for pair in pairs
        for kind, name in (("train", pair.train), ("test", pair.test))
    )
    assert "http" not in re.sub(r"base64,[^\"]*", "", page), "the page must not need a network"

    text = (scene / "found/decisions.tsv").read_text()
    for train_person, test_person in PLANTED:
        text = re.sub(rf"({train_person}\t{test_person}\t\S+\t)", r"\1same", text)
    (scene / "found/decisions.tsv").write_text(text)
    before = (scene / "found/centres.train.npz").stat().st_mtime_ns
    second = stage(scene, "overlap.py", "run", "test", "found", "--above", "0.95")
    assert (scene / "found/centres.train.npz").stat().st_mtime_ns == before, "embedded again"
    assert "2 training people to leave out" in second
    assert {(p.train, p.test) for p in read_decisions(scene / "found/decisions.tsv") if p.decision} == PLANTED

    cut = stage(scene, "shard.py", "subset", "shards", "clean", "--drop", "found/exclude.txt")
    assert "of 4 identities" in cut
    assert (scene / "clean/identities.txt").read_text().split() == ["person000", "person002", "person003", "person005"]

    options = ["run", "--images", "test", "--pairs", "pairs.tsv", "--resamples", "20"]
    stage(scene, "evaluate.py", *options)
    stage(scene, "evaluate.py", *options, "--without", "found/decisions.tsv", "--report")
    with_them, without = (
        load(scene / f"run/evaluations/{name}/step-00000020.json") for name in ("pairs", "pairs without overlap")
    )
    keep = [not {"one", "four"} & {str(a).split("/")[0], str(b).split("/")[0]} for a, b in pairs_of(with_them)]
    assert pairs_of(without) == [pair for pair, kept in zip(pairs_of(with_them), keep, strict=True) if kept]
    assert without.pairs.scores == pytest.approx(with_them.pairs.scores[keep], abs=1e-5)
    report = (scene / "run/report.html").read_text()
    assert "Verification on pairs without overlap" in report
    assert "Verification on pairs</h2>" in report


def pairs_of(evaluation: Evaluation) -> list[tuple[str, str]]:
    return list(zip(evaluation.path_a.tolist(), evaluation.path_b.tolist(), strict=True))


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)")
def test_the_page_saves_what_was_decided_on_it(scene: Path, tmp_path: Path) -> None:
    stage(scene, "overlap.py", "run", "test", str(tmp_path / "found"), "--above", "0.5")
    pairs = read_decisions(tmp_path / "found/decisions.tsv")
    page = (tmp_path / "found/overlap.html").read_text()
    # A click, a key, and what the button would save, into the page that Chromium prints.
    script = """<script>
    pairs[0].querySelector('input[value="same"]').click();
    pairs[1].dispatchEvent(new Event("mouseenter"));
    dispatchEvent(new KeyboardEvent("keydown", {key: "2"}));
    const shown = document.createElement("pre");
    shown.textContent = decisions();
    document.body.replaceChildren(shown);
    </script>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{script}</body>"))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    saved = done.stdout.split("<pre>")[1].split("</pre>")[0]
    (tmp_path / "found/decisions.tsv").write_text(saved)
    decided = read_decisions(tmp_path / "found/decisions.tsv")
    assert [(pair.train, pair.test) for pair in decided] == [(pair.train, pair.test) for pair in pairs]
    assert [pair.decision for pair in decided] == ["same", "different", *[""] * (len(pairs) - 2)]
