"""`stages/synthesise.py` as users run it: any number of workers, killed, interrupted, run twice, asked for nonsense."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from cluster.stop import EXIT_REFUSED
from cluster.versions import how_to_install
from pipeline.evaluation.protocols.pairs import read_pairs
from pipeline.shards.checking.verify import verify
from pipeline.shards.format.manifest import PROGRESS, Manifest
from pipeline.shards.format.names import read_identities
from pipeline.shards.sources.finished import open_set
from pipeline.shards.sources.list_file import read_list
from tests.end_to_end.stage import STAGES, run_stage
from tests.renderer import needs_renderer
from tests.shards import contents, extracted, snapshot

pytestmark = needs_renderer

STAGE = STAGES / "synthesise.py"
SET = ("--people", "8", "--images", "4", "--seed", "5", "--samples-per-tar", "8", "--workers", "1")


def synthesise(out: Path, *options: object) -> int:
    """The stage on the set of these tests; an option that is given again counts."""
    return run_stage("synthesise.py", out, *SET, *options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of 8 people, 4 images each, in 4 tars."""
    out = tmp_path_factory.mktemp("whole") / "set"
    assert synthesise(out) == 0
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as folders."""
    out = tmp_path_factory.mktemp("folder") / "faces"
    assert synthesise(out, "--as", "folder") == 0
    return out


@pytest.mark.parametrize("workers", [2, 3])
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    whole: Path, folder: Path, tmp_path: Path, workers: int
) -> None:
    assert synthesise(tmp_path / "set", "--workers", workers) == 0
    assert snapshot(tmp_path / "set") == snapshot(whole)
    assert synthesise(tmp_path / "faces", "--as", "folder", "--workers", workers) == 0
    assert snapshot(tmp_path / "faces") == snapshot(folder)


def test_verify_accepts_the_shards(whole: Path) -> None:
    assert verify(whole, decode_every=1) == []
    manifest = Manifest.load(whole)
    assert (manifest.samples, manifest.identities, len(manifest.tars)) == (32, 8, 4)
    assert read_identities(whole, manifest) == [f"r5-{number:08d}" for number in range(8)]


def test_every_sample_keeps_its_landmarks_and_attributes(whole: Path) -> None:
    found = 0
    for tar in sorted(whole.glob("*.tar")):
        with tarfile.open(tar) as members:
            for member in members:
                if member.name.endswith(".json"):
                    fields = json.loads(extracted(members, member))
                    points = np.array(fields["landmarks"])
                    assert points.shape == (5, 2)
                    assert (points > 0).all() and (points < 112).all()
                    assert points[0, 0] < points[1, 0] and points[0, 1] < points[3, 1]  # left eye, right eye, mouth
                    assert {"age", "sex", "yaw", "light", "key"} <= fields.keys()
                    found += 1
    assert found == 32


def test_the_folder_holds_the_same_images_and_shards_to_the_same_tars(
    whole: Path, folder: Path, tmp_path: Path
) -> None:
    assert contents(read_list(folder / "faces.csv")) == contents(open_set(whole))
    again = tmp_path / "again"
    assert run_stage("shard.py", folder / "faces.csv", again, "--seed", 5, "--samples-per-tar", 8) == 0
    tars = sorted(path.name for path in whole.glob("*.tar"))
    assert [(again / tar).read_bytes() for tar in tars] == [(whole / tar).read_bytes() for tar in tars]


def test_a_person_is_a_number_of_a_seed_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    assert synthesise(tmp_path / "some", "--first", 6, "--people", 3, "--images", 5) == 0
    before, after = contents(open_set(whole)), contents(open_set(tmp_path / "some"))
    shared = before.keys() & after.keys()
    assert len(shared) == 2 * 4  # people 6 and 7
    assert all(before[key] == after[key] for key in shared)
    assert len({image for _, image in chain(before.values(), after.values())}) == 32 + 15 - 8  # all others differ
    assert synthesise(tmp_path / "others", "--seed", 6) == 0
    others = contents(open_set(tmp_path / "others"))
    assert not before.keys() & others.keys()
    assert not {image for _, image in before.values()} & {image for _, image in others.values()}


def test_a_switch_changes_the_images_and_is_in_the_manifest_and_on_the_card(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "still"
    assert synthesise(out, "--pose", 0, "--no-background", "--people", 2) == 0
    before, after = contents(open_set(whole)), contents(open_set(out))
    assert all(before[key] != after[key] for key in after)
    assert "pose 0.0" in Manifest.load(out).made.source and "background False" in Manifest.load(out).made.source
    assert "--pose 0.0 --no-background" in (out / "README.md").read_text()
    yaws = [fields["yaw"] for _, _, fields in open_set(out).read_many(np.arange(8))]
    assert yaws == [0.0] * 8


def test_run_twice_nothing_is_done(whole: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for out, form in ((whole, "shards"), (folder, "folder")):
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        assert synthesise(out, "--as", form) == 0
        assert capfd.readouterr().err == f"synthesise: {out}: already complete, nothing done\n"
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("form", "options", "words"),
    [
        ("shards", ["--seed", 6], "got seed 5, wanted seed 6"),
        ("shards", ["--people", 9, "--pose", 0.5], "got people 0 to 7, pose 1.0, wanted people 0 to 8, pose 0.5"),
        ("shards", ["--samples-per-tar", 9], "samples_per_tar: got 8, wanted 9"),
        ("folder", ["--images", 5], "got 4 images each, wanted 5 images each"),
        ("folder", ["--size", "112x96"], "got 112x112, wanted 112x96"),
    ],
)
def test_a_finished_set_of_other_arguments_is_refused_in_words(
    whole: Path, folder: Path, form: str, options: list[object], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = whole if form == "shards" else folder
    before = snapshot(out)
    assert synthesise(out, "--as", form, *options) == EXIT_REFUSED
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"synthesise: {out}: holds other") and words in line
    assert line.endswith("choose another folder or remove it")
    assert snapshot(out) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fewer", 8], "--fewer: got 8, wanted fewer than the 8 of --people"),
        (["--fewer", 2, "--as", "folder"], "--fewer: got --as folder, wanted --as shards"),
        (["--people", 0], "argument --people: got '0', wanted a whole number of at least 1"),
        (["--first", -1], "argument --first"),
        (["--pose", "much"], "argument --pose: got 'much', wanted a number of at least 0"),
        (["--size", "64x64"], "argument --size: invalid choice: '64x64'"),
    ],
)
def test_arguments_that_make_no_sense(
    tmp_path: Path, options: list[object], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert synthesise(tmp_path / "set", *options) == 2
    assert words in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pairs", 19], "pairs: got 19 people with 4 images each, wanted 20 people with 2 images at least"),
        (["--pairs", 20, "--images", 1], "wanted 20 people with 2 images at least"),
        (["--seed", 2**63], f"seed: got {2**63}, wanted 0 to {2**63 - 1}"),
        (["--first", 99_999_993], "people: got numbers 99999993 to 100000000, wanted 0 to 99999999"),
        (["--first", 99_999_992, "--pairs", 20], "people: got numbers 100000000 to 100000019, wanted 0 to 99999999"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_rendered(
    tmp_path: Path, options: list[object], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert synthesise(tmp_path / "set", *options) == EXIT_REFUSED
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("synthesise: ") and words in line
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("form", ["shards", "folder"])
def test_a_folder_with_something_else_is_left_alone(
    form: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert synthesise(tmp_path, "--as", form) == EXIT_REFUSED
    (line,) = capfd.readouterr().err.splitlines()
    assert "is not empty and holds no" in line
    assert snapshot(tmp_path) == {"thesis.txt": b"years of work"}
    (tmp_path / "set.pairs").mkdir()
    (tmp_path / "set.pairs" / "thesis.txt").touch()
    for out, more, words in (
        (tmp_path / "set", ["--pairs", 20], "set.pairs: is not empty and holds no rendered people"),
        (tmp_path / "thesis.txt", [], "thesis.txt: is a file, wanted a new or an empty folder"),
    ):
        assert synthesise(out, "--as", form, *more) == EXIT_REFUSED
        assert words in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.pairs", "thesis.txt"]


def test_what_is_in_the_way_of_a_smaller_set_is_seen_before_anything_is_rendered(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set.2").mkdir()
    (tmp_path / "set.2" / "thesis.txt").touch()
    assert synthesise(tmp_path / "set", "--fewer", 2) == EXIT_REFUSED
    assert "set.2: is not empty, wanted a new folder" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["set.2"]


def test_compiling_is_announced_unless_it_is_kept_or_nothing_is_left_to_render(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.rendering.exact.compiling.is_kept", lambda _: False)
    few = ("--people", 1, "--images", 1, "--as", "folder")
    for words in ("compiling the renderer, once: the first photograph takes longer", "already complete, nothing done"):
        assert synthesise(tmp_path / "set", *few) == 0
        (line,) = capfd.readouterr().err.splitlines()
        assert words in line


def test_without_the_extra_it_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "anny" else find(name))
    assert synthesise(tmp_path / "set") == EXIT_REFUSED
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("synthesise: ") and how_to_install("rendered") in line


def test_pairs_are_of_others_and_no_person_is_in_two_folds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    options = ("--people", 2, "--images", 3, "--pairs", 20)
    assert synthesise(out, *options) == 0
    held_out = tmp_path / "set.pairs"
    assert "10 folds of 6 same and 6 different pairs" in capfd.readouterr().out
    pairs = read_pairs(held_out / "pairs.tsv", held_out)
    assert (len(pairs.same), pairs.impostors, len(pairs.folds), len(pairs.people)) == (120, 60, 10, 20)
    folds_of = [set(pairs.fold[(pairs.identity[pairs.a] == i) | (pairs.identity[pairs.b] == i)]) for i in range(20)]
    assert all(len(folds) == 1 for folds in folds_of)
    assert not pairs.oddities()
    trained_on = read_identities(out, Manifest.load(out))
    assert not set(trained_on) & set(pairs.people)
    again(held_out, tmp_path / "again")
    text = [(folder / "pairs.tsv").read_bytes() for folder in (held_out, tmp_path / "again")]
    assert text[0] == text[1]
    (held_out / "pairs.tsv").unlink()  # as a kill before the last step leaves it
    before = snapshot(tmp_path)
    assert synthesise(out, *options) == 0
    assert "nothing done" not in capfd.readouterr().err
    assert snapshot(tmp_path).keys() - before.keys() == {"set.pairs/pairs.tsv"}


def test_sets_of_fewer_people_lie_over_the_same_tars(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    assert synthesise(out, "--fewer", 2) == 0
    for said in ("", f"synthesise: {out}: already complete, nothing done\n"):
        assert synthesise(out, "--fewer", 2, 5) == 0
        assert capfd.readouterr().err == said
    for people in (2, 5):
        fewer = tmp_path / f"set.{people}"
        assert read_identities(fewer, Manifest.load(fewer)) == [f"r5-{number:08d}" for number in range(people)]
        assert Manifest.load(fewer).samples == people * 4
        assert verify(fewer, decode_every=1) == []
        assert not list(fewer.glob("*.tar"))


def test_the_card_says_what_is_in_the_set_and_how_to_make_it_again(whole: Path, tmp_path: Path) -> None:
    card = (whole / "README.md").read_text()
    assert card.startswith("# 8 rendered people, 32 images\n")
    for words in ("numbers 0 to 7 of seed 5", "CC0 1.0", "| age |", "| yaw |", "no population's"):
        assert words in card
    again(whole, tmp_path / "again")
    assert snapshot(tmp_path / "again") == snapshot(whole)


def again(out: Path, copy: Path) -> None:
    """Carry out the commands on a set's card for another folder."""
    commands = [line.split() for line in (out / "README.md").read_text().splitlines() if line.startswith("    python ")]
    assert commands
    for _, stage, *words in commands:
        assert run_stage(Path(stage).name, *(word.replace("OUT", str(copy)) for word in words)) == 0


# A tar, or a folder, is done every few milliseconds, so there are many of them.
SMALL = ("--people", 20, "--images", 2, "--samples-per-tar", 1)

# What a run is at when it is cut short -> the form that is asked for, and the ending of the folder that it then writes.
PHASES = {"tars by person": ("shards", ".unshuffled"), "shuffled tars": ("shards", ""), "folders": ("folder", "")}


def start(out: Path, form: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(STAGE), str(out), *SET, *map(str, SMALL), "--as", form]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )


def records(out: Path, phase: str) -> list[Path]:
    """What says of each part of a set that it is done, while the set is written."""
    return [*out.with_name(out.name + PHASES[phase][1]).glob(f"{PROGRESS}/*[0-9].json")]


def cut_short(out: Path, phase: str, number: signal.Signals) -> tuple[int, str]:
    """Leave a set that was being written when a signal came; the code and what was said on standard error."""
    for _ in range(10):
        run = start(out, PHASES[phase][0])
        while run.poll() is None and len(records(out, phase)) < 3:
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):  # it may be over
            os.killpg(run.pid, number)
        _, errors = run.communicate()
        if records(out, phase):
            return run.returncode, errors
        shutil.rmtree(out)
    pytest.fail("never cut short in time")


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_run_ends_in_the_same_bytes(phase: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, form = tmp_path / "set", PHASES[phase][0]
    assert cut_short(out, phase, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (out / "README.md").exists()
    done = {path: path.stat().st_mtime_ns for path in records(out, phase)}
    assert synthesise(out, *SMALL, "--as", form, "--seed", 6) == EXIT_REFUSED
    (line,) = capfd.readouterr().err.splitlines()
    assert "seed 5" in line and "seed 6" in line
    assert done.keys() == set(records(out, phase))
    assert synthesise(out, *SMALL, "--as", form) == 0
    assert synthesise(tmp_path / "other", *SMALL, "--as", form) == 0
    assert snapshot(out) == snapshot(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "set"]
    if phase != "tars by person":  # whose tars are gone; of the others those that were done were not made again
        images = [path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in {".jpg", ".tar"}]
        assert sum(time < max(done.values()) for time in images) >= len(done)


def test_ctrl_c_is_one_line_and_the_same_command_resumes(tmp_path: Path) -> None:
    out = tmp_path / "set"
    code, errors = cut_short(out, "folders", signal.SIGINT)
    assert (code, errors) == (130, "synthesise: stopped; run the same command again to resume\n")
    assert not list(out.rglob("*.part"))
    assert synthesise(out, *SMALL, "--as", "folder") == 0
    assert not (out / PROGRESS).exists()
