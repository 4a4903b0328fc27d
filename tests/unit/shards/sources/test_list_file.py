"""List files: an image and an identity a line."""

from pathlib import Path

import pytest

from pipeline.shards.manifest import ShardError
from pipeline.shards.plan import make_plan
from pipeline.shards.sources.detect import open_source
from tests.shards import contents, made, noise


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(4):
        (tmp_path / f"my face {number}.jpg").write_bytes(noise(number))
    return tmp_path


@pytest.mark.parametrize("separator", ["\t", " "])
def test_a_list_names_image_and_identity(images: Path, separator: str) -> None:
    lines = [f"my face {n}.jpg{separator}{who}" for n, who in enumerate(["zoe", "adam", "zoe", "bea"])]
    (images / "list.txt").write_text("\n".join(["# made by hand", "", *lines, ""]))
    source = open_source(images / "list.txt")
    assert list(source.identities) == ["adam", "bea", "zoe"]
    assert source.labels.tolist() == [2, 0, 2, 1]
    assert contents(source) == {
        f"my face {n}.jpg": (who, noise(n)) for n, who in enumerate(["zoe", "adam", "zoe", "bea"])
    }


def test_numbers_as_identities_keep_their_order(images: Path) -> None:
    (images / "list.tsv").write_text(
        f"my face 0.jpg\t10\r\nmy face 1.jpg\t9\r\n{images}/my face 2.jpg\t0\r\nmy face 3.jpg\t10\r\n"
    )
    source = open_source(images / "list.tsv")
    assert list(source.identities) == ["00", "09", "10"]
    assert source.labels.tolist() == [2, 1, 0, 2]
    assert source.read(2) == noise(2)  # an absolute path


def test_7_and_07_may_be_two_people(images: Path) -> None:
    (images / "l.txt").write_text("my face 0.jpg\t7\nmy face 1.jpg\t07\n")
    assert list(open_source(images / "l.txt").identities) == ["07", "7"]


def test_a_list_becomes_shards(images: Path) -> None:
    (images / "list.txt").write_text("my face 0.jpg 1\nmy face 1.jpg 2\nabsent.jpg 2\nnothing\n")
    plan = make_plan(open_source(images / "list.txt"), images / "out", seed=0, samples_per_tar=9, size=None)
    manifest = made(plan)
    assert (manifest.samples, manifest.identities, manifest.made.source) == (2, 2, "list")
    assert (images / "out" / "rejected.tsv").read_text().splitlines()[1:] == [
        "absent.jpg\tunreadable: No such file or directory",
        "list.txt:4\tno identity: wanted path, tab, identity",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got no images, wanted lines of path, tab, identity"),
        (b"only a path\t\n", "got no images"),
        (b"a.jpg\t\xff\n", "not UTF-8"),
        (b"a.jpg\tb\x07\n", "identity 'b.x07': wanted a printable UTF-8 name"),
    ],
)
def test_a_bad_list_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ShardError, match=message):
        open_source(tmp_path / "list.txt")


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="nowhere: not found, wanted identity folders"):
        open_source(tmp_path / "nowhere")
