"""Sharding what is not as it should be: set aside with its reason, or refused in one line."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.reading.mixing import mixing_by_default
from pipeline.shards.checking.page import write_page
from pipeline.shards.checking.verify import verify
from pipeline.shards.format.index import open_index
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.images import LARGEST_IMAGE
from pipeline.shards.making.build import make_shards
from pipeline.shards.sources.detect import open_source
from pipeline.shards.sources.finished import open_set
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.sources.loss import summary
from pipeline.shards.views.hygiene import clean
from pipeline.shards.views.select import merge, select
from pipeline.shards.views.subset import subset
from tests.shards import HEIGHT, WIDTH, made, noise, plan_of, rejected, write_people


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_people(tmp_path / "faces")


def test_bad_files_are_set_aside_counted_and_named(faces: Path, tmp_path: Path) -> None:
    clean = made(plan_of(faces, tmp_path / "clean"))
    person = faces / "person 6"
    (person / "small.jpg").write_bytes(noise(1, height=10, width=9))
    (person / "cut.jpg").write_bytes(noise(2)[:-20])
    (person / "text.jpg").write_text("no image")
    (person / "empty.jpg").touch()
    (person / "notes.txt").touch()
    (person / "deeper").mkdir()
    (person / ".hidden.jpg").touch()
    (person / "gone.jpg").symlink_to("nowhere")
    (person / "circle.jpg").symlink_to("circle.jpg")
    (faces / "circle").symlink_to("circle")
    (faces / "lost+found").mkdir()
    (faces / "nobody").mkdir()
    (faces / "all bad").mkdir()
    (faces / "all bad" / "x.jpg").touch()
    (faces / "README").touch()
    manifest = made(plan_of(faces, tmp_path / "out", size=(HEIGHT, WIDTH)))
    assert rejected(tmp_path / "out") == {
        "README": "not in an identity folder",
        "all bad": "identity left empty",
        "all bad/x.jpg": "empty file",
        "circle": "unreadable: Too many levels of symbolic links",
        "nobody": "identity without images",
        "person 6/circle.jpg": "unreadable: Too many levels of symbolic links",
        "person 6/cut.jpg": "truncated: the JPEG has no end marker",
        "person 6/deeper": "not a file",
        "person 6/empty.jpg": "empty file",
        "person 6/gone.jpg": "not a file",
        "person 6/notes.txt": "not named as an image (.jpg, .png, .webp, .bmp, .tif, .heic)",
        "person 6/small.jpg": f"wrong size: got 10x9, wanted {HEIGHT}x{WIDTH}",
        "person 6/text.jpg": "not a JPEG or PNG",
    }
    assert manifest.set_aside == 13
    assert open_source(faces).set_aside == scan_folder(faces).set_aside
    assert manifest.samples == clean.samples
    # An identity all of whose images are bad keeps its label, since labels are in the tars by then.
    assert manifest.identities == clean.identities + 1
    labels = open_index(tmp_path / "out", manifest)["label"]
    assert sorted(set(labels.tolist())) == list(range(1, 8))


def test_a_name_with_a_line_break_is_in_one_line(faces: Path, tmp_path: Path) -> None:
    (faces / "bad\nname").mkdir()
    (faces / "bad\nname" / "1.jpg").write_bytes(noise(1, height=HEIGHT, width=WIDTH))
    source = scan_folder(faces)
    assert summary(source.set_aside) == r"1 × wanted a printable UTF-8 name; rename it (bad\nname)"
    made(plan_of(faces, tmp_path / "out"))
    assert rejected(tmp_path / "out") == {r"bad\nname": "wanted a printable UTF-8 name; rename it"}


@pytest.mark.parametrize(
    ("field", "value", "got"),
    [
        ("offset", 2**63 + 5, "bytes at 9223372036854775813 of faces-000001.tar"),
        ("size", 2**31, "got 2147483648 bytes"),
        ("label", 7, "label 7, wanted them in its .* bytes, label less than 7"),
    ],
)
def test_a_set_whose_index_points_elsewhere_is_refused(
    faces: Path, tmp_path: Path, field: str, value: int, got: str
) -> None:
    folder, out = tmp_path / "set", tmp_path / "out"
    manifest = made(plan_of(faces, folder))
    made(plan_of(faces, tmp_path / "other", seed=2))
    rows = np.array(open_index(folder, manifest))
    rows[field][8] = value
    np.save(folder / "index.npy", rows)
    commands: list[Callable[[], object]] = [
        lambda: clean(folder, out),
        lambda: subset(folder, out, people=2),
        lambda: select(folder, out, np.ones(len(rows), bool), kind="subset"),
        lambda: merge([tmp_path / "other", folder], out, same_people=True),
        lambda: mixing_by_default(folder),
        lambda: write_page(folder, tmp_path / "page.html", ""),
        lambda: open_set(folder),
    ]
    for refused in commands:
        with pytest.raises(ShardError, match=rf"index\.npy: row 8: .*{got}.*verify lists all faults"):
            refused()
    assert not out.exists()
    assert any(fault.file == "index.npy" for fault in verify(folder, decode_every=1))


@pytest.mark.parametrize(("fault", "reason"), [(errno.EACCES, "Permission denied"), (errno.EIO, "Input/output error")])
def test_an_unreadable_file_is_set_aside(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int, reason: str
) -> None:
    fail_to_open(monkeypatch, "person 1/0.JPG", fault)
    make_shards(plan_of(faces, tmp_path / "out"))
    assert rejected(tmp_path / "out") == {"person 1/0.JPG": f"unreadable: {reason}"}


def test_a_file_that_is_larger_than_any_image_is_set_aside(faces: Path, tmp_path: Path) -> None:
    os.truncate(faces / "person 1" / "0.JPG", LARGEST_IMAGE + 1)  # with a hole, which takes no room
    make_shards(plan_of(faces, tmp_path / "out", size=(HEIGHT, WIDTH)))
    reason = "too large: got 1,073,741,825 bytes, wanted at most 1,073,741,824"
    assert rejected(tmp_path / "out") == {"person 1/0.JPG": reason}


def test_a_source_that_is_gone_ends_the_run(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_open(monkeypatch, "person 1/0.JPG", errno.ESTALE)
    with pytest.raises(ShardError, match=r"person 1/0\.JPG: Stale file handle"):
        make_shards(plan_of(faces, tmp_path / "out"))


def test_a_source_that_goes_while_it_is_read_is_not_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    for number in range(200):
        (tmp_path / "faces" / "ann" / f"{number}.jpg").write_bytes(noise(0))
    planned = plan_of(tmp_path / "faces", tmp_path / "out", per_tar=100)
    with monkeypatch.context() as gone:
        fail_to_open(gone, ".jpg", errno.EIO)
        with pytest.raises(
            ShardError, match=r"none of 100 images could be read, the last is ann/\d+\.jpg: unreadable: In"
        ):
            make_shards(planned)
        with pytest.raises(ShardError, match=r"none of 64 images could be read, the last is ann/"):
            plan_of(tmp_path / "faces", tmp_path / "other")
    assert made(planned).set_aside == 0


def fail_to_open(monkeypatch: pytest.MonkeyPatch, ending: str, fault: int) -> None:
    """Root may read every file, and tests may run as root, so the system's answer is set here."""

    def opened(path: str, *args: int, real: Callable[..., int] = os.open, **more: int) -> int:
        if str(path).endswith(ending):
            raise OSError(fault, os.strerror(fault))
        return real(path, *args, **more)

    monkeypatch.setattr("pipeline.shards.sources.files.os.open", opened)


def test_a_file_gone_since_the_listing_is_set_aside(faces: Path, tmp_path: Path) -> None:
    planned = plan_of(faces, tmp_path / "out")
    (faces / "person 1" / "0.JPG").unlink()
    make_shards(planned)
    assert rejected(tmp_path / "out") == {"person 1/0.JPG": "unreadable: No such file or directory"}


def test_a_tar_whose_files_are_all_set_aside_is_left_out(faces: Path, tmp_path: Path) -> None:
    (faces / "person 2" / "0.JPG").write_text("bad")
    manifest = made(plan_of(faces, tmp_path / "out", per_tar=1))
    assert (manifest.samples, len(manifest.tars), manifest.set_aside) == (27, 27, 1)
    assert len(list((tmp_path / "out").glob("*.tar"))) == len(list((tmp_path / "out").glob("*.idx"))) == 27


def empty_source(_root: Path) -> None:
    """Leave the folder as it is."""


def only_files(root: Path) -> None:
    (root / "a.jpg").write_bytes(noise(1))


def only_empty_identities(root: Path) -> None:
    (root / "a").mkdir()
    (root / "b").mkdir()
    (root / "b" / "notes.txt").touch()


def only_bad_images(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "1.jpg").write_text("bad")
    (root / "a" / "2.jpg").write_text("")


def unprintable_name(root: Path) -> None:
    (root / "a\nb").mkdir()
    (root / "a\nb" / "1.jpg").write_bytes(noise(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty_source, "got no identity folders, wanted one folder of images a person"),
        (only_files, "got no identity folders"),
        (only_empty_identities, "got 2 identity folders without images, wanted .jpg or .png"),
        (only_bad_images, "no readable image in 2 files; the first: a/1.jpg: not a JPEG or PNG"),
        (unprintable_name, r"identity 'a\\nb': wanted a printable UTF-8 name"),
        (lambda root: root.rmdir(), "got no folder, wanted a folder of identity folders"),
    ],
)
def test_a_source_without_faces_is_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    root = tmp_path / "source"
    root.mkdir()
    make(root)
    with pytest.raises(ShardError, match=message) as caught:
        plan_of(root, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_everything_set_aside_is_an_error_with_its_reasons(faces: Path, tmp_path: Path) -> None:
    helps = r"the size wanted is the first image's or --size; --fit crop or --fit stretch brings others to --size$"
    with pytest.raises(ShardError, match=rf"every file was set aside; see rejected\.tsv: 28 × wrong size.*; {helps}"):
        make_shards(plan_of(faces, tmp_path / "out", size=(1, 1)))
    assert len(rejected(tmp_path / "out")) == 28 + 7
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_no_samples_per_tar_is_refused(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="samples per tar: got 0, wanted at least 1"):
        plan_of(faces, tmp_path / "out", per_tar=0)
