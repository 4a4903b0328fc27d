"""Sets over the tars of other sets."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.files import held
from pipeline.reading.tars import ShardSet
from pipeline.shards.checking.page import write_page
from pipeline.shards.checking.verify import verify
from pipeline.shards.format.index import open_index
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.format.names import read_identities
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.views import select as views
from pipeline.shards.views import subset as selection
from pipeline.shards.views.hygiene import clean
from pipeline.shards.views.select import merge, select
from pipeline.shards.workers import each_done
from tests.shards import make_set_of, snapshot

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(np.array)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_set_of(tmp_path, "a", {"ann": 3, "bob": 1, "cat": 5, "dan": 2})


def contents(folder: Path) -> Counter[tuple[str, bytes]]:
    """Identity and image of every sample, as the reading room finds them."""
    manifest = Manifest.load(folder)
    names, rows = read_identities(folder, manifest), open_index(folder, manifest)
    tars = [(folder / tar.name).read_bytes() for tar in manifest.tars]
    tar_of = np.searchsorted(manifest.first_rows, np.arange(len(rows)), side="right") - 1
    return Counter(
        (names[row["label"]], tars[tar][row["offset"] : row["offset"] + row["size"]])
        for tar, row in zip(tar_of, rows, strict=True)
    )


# --- selection ---------------------------------------------------------------------------------------------


@given(labels=LABELS, images=st.integers(1, 9))
@settings(deadline=None)
def test_selections_by_count_are_those_of_a_slow_loop(labels: np.ndarray, images: int) -> None:
    counts = Counter(labels.tolist())
    assert selection.with_at_least(labels, images).tolist() == [counts[x] >= images for x in labels.tolist()]
    seen: Counter[int] = Counter()
    for label, kept in zip(labels.tolist(), selection.at_most_each(labels, images).tolist(), strict=True):
        assert kept == (seen[label] < images)
        seen[label] += 1


@given(labels=LABELS, people=st.integers(0, 8), seed=st.integers(0, 9))
@settings(deadline=None)
def test_drawn_people_come_whole_and_more_people_are_a_superset(labels: np.ndarray, people: int, seed: int) -> None:
    drawn = selection.of_some_people(labels, 7, people, seed)
    assert not set(labels[drawn]) & set(labels[~drawn])
    assert len(set(labels[drawn])) <= people
    assert not (drawn & ~selection.of_some_people(labels, 7, people + 1, seed)).any()


def test_a_list_of_people_is_read_as_names_are_kept(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "some").write_bytes(b"\xef\xbb\xbfann \r\n\r\ndan\r\n")
    dropped = selection.subset(shards, tmp_path / "b", drop=tmp_path / "some")
    assert read_identities(tmp_path / "b", dropped) == ["bob", "cat"]
    kept = selection.subset(shards, tmp_path / "c", keep=tmp_path / "some")
    assert read_identities(tmp_path / "c", kept) == ["ann", "dan"]


def test_somebody_absent_is_warned_of_if_dropped_and_refused_if_kept(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = tmp_path / "some"
    some.write_text("bob\nzoe\nbob\nAnn\n")
    dropped = selection.subset(shards, tmp_path / "b", drop=some)
    assert read_identities(tmp_path / "b", dropped) == ["ann", "cat", "dan"]
    assert caplog.messages == [f"{some}: {shards} has no 'Ann', 'zoe' (2 of 3 names of the list)"]
    with pytest.raises(ShardError, match=r"some: .*/a has no 'Ann', 'zoe' \(2 of 3 names of the list\)"):
        selection.subset(shards, tmp_path / "c", keep=some)
    assert not (tmp_path / "c").exists()


# --- views -------------------------------------------------------------------------------------------------


def test_a_subset_has_the_same_images_under_new_labels(shards: Path, tmp_path: Path) -> None:
    labels = open_index(shards, Manifest.load(shards))["label"]
    keep = (labels == 0) | (labels == 2)
    subset = select(shards, tmp_path / "deep" / "b", keep, kind="subset")
    assert (subset.samples, subset.identities, subset.made.source) == (8, 2, "subset")
    assert contents(tmp_path / "deep" / "b") == Counter(
        {(who, image): n for (who, image), n in contents(shards).items() if who in {"ann", "cat"}}
    )
    assert not list((tmp_path / "deep" / "b").glob("*.tar"))
    assert verify(tmp_path / "deep" / "b", decode_every=1) == []


def test_folders_that_move_together_stay_a_set(shards: Path, tmp_path: Path) -> None:
    keep = np.ones(11, bool)
    keep[:5] = False  # the first tar is out
    subset = select(shards, tmp_path / "b", keep, kind="subset")
    assert len(subset.tars) == len(Manifest.load(shards).tars) - 1
    before = contents(tmp_path / "b")
    (tmp_path / "moved").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert contents(tmp_path / "moved" / "b") == before


def test_a_subset_of_a_subset_names_the_first_tars(shards: Path, tmp_path: Path) -> None:
    select(shards, tmp_path / "b", np.arange(11) != 4, kind="subset")
    select(tmp_path / "b", tmp_path / "c", np.arange(10) != 0, kind="subset")
    assert contents(tmp_path / "c") <= contents(tmp_path / "b") <= contents(shards)
    assert verify(tmp_path / "c") == []


def test_the_digest_of_a_subset_depends_on_the_choice(shards: Path, tmp_path: Path) -> None:
    digests = {
        select(shards, tmp_path / str(i), np.arange(11) != left_out, kind="subset").digest
        for i, left_out in enumerate([4, 5, 4])
    }
    assert len(digests) == 2


def test_merged_sets_keep_their_people_apart(shards: Path, tmp_path: Path) -> None:
    other = make_set_of(tmp_path, "z", {"bob": 2, "eve": 4}, start=100)
    merged = merge([shards, other], tmp_path / "m", same_people=False)
    assert (merged.samples, merged.identities) == (17, 6)
    wanted = Counter({(f"a/{who}", image): n for (who, image), n in contents(shards).items()})
    wanted += Counter({(f"z/{who}", image): n for (who, image), n in contents(other).items()})
    assert contents(tmp_path / "m") == wanted
    assert verify(tmp_path / "m", decode_every=1, workers=2) == []


def test_merged_sets_may_share_people(shards: Path, tmp_path: Path) -> None:
    other = make_set_of(tmp_path, "z", {"bob": 2, "eve": 4}, start=100)
    merged = merge([shards, other], tmp_path / "m", same_people=True)
    assert (merged.samples, merged.identities) == (17, 5)
    assert contents(tmp_path / "m") == contents(shards) + contents(other)


def test_people_of_merged_sets_are_sorted_by_name_and_folders_named_in_full(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_set_of(tmp_path, "z", {"bob": 2, "eve": 4}, start=100)
    merged = merge([other, shards], tmp_path / "m", same_people=True)
    assert read_identities(tmp_path / "m", merged) == ["ann", "bob", "cat", "dan", "eve"]
    monkeypatch.chdir(other)
    apart = merge([Path(), shards], tmp_path / "n", same_people=False)
    assert read_identities(tmp_path / "n", apart) == ["a/ann", "a/bob", "a/cat", "a/dan", "z/bob", "z/eve"]


def test_a_view_of_other_sets_or_in_another_way_is_another(shards: Path, tmp_path: Path) -> None:
    other = make_set_of(tmp_path, "z", {"bob": 2, "eve": 4}, start=100)
    third = make_set_of(tmp_path, "y", {"bob": 2, "eve": 4}, start=200)
    merge([shards, other], tmp_path / "m", same_people=True)
    select(other, tmp_path / "s", np.arange(6) != 4, kind="subset")
    held = r"holds other shards \(source_sha256: got \w+, wanted \w+\); choose"
    with pytest.raises(ShardError, match=f"m: {held}"):
        merge([shards, third], tmp_path / "m", same_people=True)
    with pytest.raises(ShardError, match=f"m: {held}"):
        merge([shards, other], tmp_path / "m", same_people=False)
    with pytest.raises(ShardError, match=f"s: {held}"):
        select(third, tmp_path / "s", np.arange(6) != 4, kind="subset")


@pytest.mark.parametrize("linked", ["set", "view"])
def test_a_view_names_its_tars_from_where_folders_really_are(shards: Path, tmp_path: Path, linked: str) -> None:
    place, target = tmp_path / "links" / "deep" / linked, tmp_path / ("a" if linked == "set" else "views")
    target.mkdir(exist_ok=True)
    place.parent.mkdir(parents=True)
    place.symlink_to(target)
    folder, out = (place, tmp_path / "views" / "b") if linked == "set" else (shards, place / "b")
    select(folder, out, np.ones(11, bool), kind="subset")
    assert contents(tmp_path / "views" / "b") == contents(shards)


def test_a_view_of_an_earlier_version_is_taken(shards: Path, tmp_path: Path) -> None:
    keep = np.arange(11) != 4
    made = select(shards, tmp_path / "b", keep, kind="subset")
    content = made.content.replace(made.made.tool.encode(), b"earlier")
    (tmp_path / "b" / "manifest.json").write_bytes(content)
    assert select(shards, tmp_path / "b", keep, kind="subset").made.tool == "earlier"


@pytest.mark.parametrize("same_people", [True, False])
def test_a_set_is_not_merged_with_its_part(shards: Path, tmp_path: Path, same_people: bool) -> None:
    labels = open_index(shards, Manifest.load(shards))["label"]
    select(shards, tmp_path / "b", labels < 2, kind="subset")
    select(shards, tmp_path / "c", labels > 1, kind="subset")
    parts = merge([tmp_path / "b", tmp_path / "c"], tmp_path / "whole", same_people=True)
    assert (parts.samples, contents(tmp_path / "whole")) == (11, contents(shards))
    shutil.copytree(shards, tmp_path / "copy")
    for one, other, shared in [("a", "b", 4), ("c", "whole", 7), ("copy", "whole", 11), ("copy", "c", 7)]:
        found = f"merge: {tmp_path / one} and {tmp_path / other} have {shared} samples in common, wanted none"
        with pytest.raises(ShardError, match=re.escape(found)):
            merge([tmp_path / one, tmp_path / other], tmp_path / "m", same_people=same_people)
        assert not (tmp_path / "m").exists()


def test_a_view_of_a_set_that_was_made_anew_is_refused(shards: Path, tmp_path: Path) -> None:
    """Of the same images in another order: so the tars have the same names, and may have the same sizes."""
    keep = np.arange(11) != 4
    select(shards, tmp_path / "b", keep, kind="subset")
    old = Manifest.load(shards)
    shutil.rmtree(shards)
    make_shards(make_plan(scan_folder(tmp_path / "a_faces"), shards, seed=1, samples_per_tar=4, size=None))
    for tar in old.tars:
        with (shards / tar.name).open("ab") as file:
            file.truncate(tar.bytes)
    with pytest.raises(ShardError, match=r"b: made of .*/a, which was made anew: faces-000000.tar: sha256: got \w+, w"):
        select(tmp_path / "b", tmp_path / "c", keep[1:], kind="subset")
    with pytest.raises(ShardError, match="made anew"):
        ShardSet(tmp_path / "b")


@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_a_view_wants_its_tars(shards: Path, tmp_path: Path, fault: str) -> None:
    tar = shards / "faces-000001.tar"
    if fault == "cut":
        os.truncate(tar, 1000)
    else:
        tar.unlink()
    wanted = "got 1000 bytes, wanted" if fault == "cut" else "missing tar, wanted"
    with pytest.raises(ShardError, match=f"faces-000001.tar: {wanted}"):
        select(shards, tmp_path / "b", np.ones(11, bool), kind="subset")
    with pytest.raises(ShardError, match=f"faces-000001.tar: {wanted}"):
        merge([shards], tmp_path / "b", same_people=True)
    with pytest.raises(ShardError, match=f"faces-000001.tar: {wanted}"):
        clean(shards, tmp_path / "b")
    with pytest.raises(ShardError, match=f"faces-000001.tar: {wanted}"):
        write_page(shards, tmp_path / "page.html", "")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a_faces"}


def test_sets_that_do_not_fit_are_not_merged(shards: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(shards)
    (tmp_path / "x").mkdir()
    with pytest.raises(ShardError, match="wanted folders of different names"):
        merge([shards, shards], tmp_path / "m", same_people=False)
    for path in shards.iterdir():
        (tmp_path / "x" / path.name).write_bytes(path.read_bytes())
    text = (shards / "manifest.json").read_text().replace('"image_height": 8', '"image_height": 9')
    (tmp_path / "x" / "manifest.json").write_text(text)
    with pytest.raises(ShardError, match="got images of 8x8 and 9x8, wanted one size"):
        merge([shards, tmp_path / "x"], tmp_path / "m", same_people=True)
    (tmp_path / "x" / "manifest.json").write_text(
        text.replace('"image_height": 9', '"image_height": 8').replace('"image_width": 8', '"image_width": 7')
    )
    with pytest.raises(ShardError, match="got images of 8x7 and 8x8, wanted one size"):
        merge([shards, tmp_path / "x"], tmp_path / "m", same_people=True)
    assert manifest == Manifest.load(shards)


def test_a_view_needs_samples_names_and_a_new_folder(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="nothing is left of 11 samples"):
        select(shards, tmp_path / "b", np.zeros(11, bool), kind="subset")
    with pytest.raises(ShardError, match=r"a: holds other shards \(source: got folder, wanted subset, source_sha256"):
        select(shards, shards, np.ones(11, bool), kind="subset")
    (shards / "identities.txt").write_text("someone\n")
    with pytest.raises(ShardError, match="got other names, wanted those of"):
        select(shards, tmp_path / "b", np.ones(11, bool), kind="subset")


def test_a_view_is_made_once_and_after_a_kill(shards: Path, tmp_path: Path) -> None:
    keep = np.arange(11) != 4
    (tmp_path / "b").mkdir()
    for name in ("identities.txt", "rejected.tsv", "index.npy.0123456789ab.part", ".lock"):  # what a killed run left
        (tmp_path / "b" / name).write_bytes(b"half")
    first = select(shards, tmp_path / "b", keep, kind="subset")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()}
    assert {path.name for path in times} == {"identities.txt", "index.npy", "manifest.json", "rejected.tsv"}
    assert select(shards, tmp_path / "b", keep, kind="subset") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()} == times
    with pytest.raises(ShardError, match=r"b: holds other shards \(source_sha256: got \w+, wanted \w+\); choose"):
        select(shards, tmp_path / "b", ~keep, kind="subset")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").touch()
    with pytest.raises(ShardError, match="c: is not empty, wanted a new folder"):
        select(shards, tmp_path / "c", keep, kind="subset")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["thesis.tex"]
    with pytest.raises(ShardError, match=r"thesis\.tex: is a file, wanted a new folder"):
        select(shards, tmp_path / "c" / "thesis.tex", keep, kind="subset")


def test_a_view_that_another_process_has_made_meanwhile_is_not_written_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: dict[Path, int] = {}

    @contextmanager
    def finish_first(folder: Path) -> Iterator[None]:
        monkeypatch.undo()
        view(shards, folder, 0)
        times.update({path: path.stat().st_mtime_ns for path in folder.iterdir()})
        with held(folder):
            yield

    monkeypatch.setattr(views, "held", finish_first)
    view(shards, tmp_path / "b", 0)
    assert len(times) == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()} == times


def view(shards: Path, out: Path, _job: int) -> str:
    return select(shards, out, np.arange(11) != 4, kind="subset").digest


def test_a_view_that_two_processes_make_is_whole(shards: Path, tmp_path: Path) -> None:
    wanted = view(shards, tmp_path / "b", 0)
    for attempt in range(8):
        out = tmp_path / str(attempt)
        assert set(each_done(partial(view, shards, out), range(3), 3)) == {wanted}
        assert snapshot(out) == snapshot(tmp_path / "b")
