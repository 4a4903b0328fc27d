"""List files: an image and an identity a line."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources.detect import open_source
from pipeline.shards.sources.labels import number_names, ranked, sorted_identities
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
    assert list(source.identities) == ["0", "9", "10"]
    assert source.labels.tolist() == [2, 1, 0, 2]
    assert source.read(2) == noise(2)  # an absolute path


def test_numbers_are_ranked_part_by_part_as_all_at_once() -> None:
    chance = np.random.default_rng(0)
    parts = [chance.integers(0, 50, size) * 7 for size in (5, 0, 40, 30, 1)]
    distinct, inverse = np.unique(np.concatenate(parts), return_inverse=True)
    found, places = ranked(parts)
    assert (found.tolist(), places.tolist()) == (distinct.tolist(), inverse.tolist())


def test_names_of_numbers_sort_as_the_numbers_do() -> None:
    assert number_names(np.array([0, 7, 45, 123])) == ["000", "007", "045", "123"]


def test_identities_keep_their_spelling(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    people = ["0000045", "佐藤\u3000健", "नी\u200dरज", "Ann\u00a0Lee"]
    (images / "list.txt").write_text("".join(f"my face {n}.jpg\t{who}\n" for n, who in enumerate(people)))
    source = open_source(images / "list.txt")
    assert [source.identities[label] for label in source.labels] == people
    assert not caplog.records


def test_spaces_marks_and_compositions_are_trimmed_with_a_warning(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "list.txt").write_text("\ufeffmy face 0.jpg\tZo\u00eb\nmy face 1.jpg\tZoe\u0308\nmy face 2.jpg\tbob  \n")
    source = open_source(images / "list.txt")
    assert list(source.identities) == ["Zo\u00eb", "bob"]
    assert source.labels.tolist() == [0, 0, 1]
    assert [source.read(n) for n in range(3)] == [noise(n) for n in range(3)]
    messages = [record.message.split(": ", 1)[1] for record in caplog.records]
    assert messages == [
        "begins with a byte-order mark, which is left out",
        "2 names are kept without blanks behind them, without a byte-order mark, in Unicode's composed form",
    ]


@pytest.mark.parametrize("line", ["my face 0.jpg bob  ", "my face 0.jpg\tbob\t", "my face 0.jpg\tbob \r"])
def test_blanks_at_the_end_of_a_line_are_no_identity(images: Path, line: str) -> None:
    (images / "list.txt").write_bytes(line.encode() + b"\n")
    source = open_source(images / "list.txt")
    assert (list(source.identities), source.key(0)) == (["bob"], "my face 0.jpg")


def test_a_name_that_cannot_be_used_costs_its_person_only(images: Path) -> None:
    (images / "list.txt").write_text("my face 0.jpg\tann\nmy face 1.jpg\tb\x07b\nmy face 2.jpg\tcat\n")
    source = open_source(images / "list.txt")
    assert list(source.identities) == ["ann", "cat"]
    reason = "identity 'b\\x07b': wanted a printable UTF-8 name; rename it"
    assert list(source.set_aside) == [("my face 1.jpg", reason, 1)]


def test_a_folder_whose_name_cannot_be_used_costs_its_person_only(tmp_path: Path) -> None:
    for name in ("佐藤\u3000健", "a\nb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(noise(1))
        (tmp_path / name / "2.jpg").write_bytes(noise(2))
    source = open_source(tmp_path)
    assert list(source.identities) == ["佐藤\u3000健"]
    assert list(source.set_aside) == [("a\nb", "wanted a printable UTF-8 name; rename it", 2)]
    (remote,) = open_source(f"file://{tmp_path}").set_aside[:1]
    assert remote == ("a\nb/1.jpg", "identity 'a\\nb': wanted a printable UTF-8 name; rename it", 1)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_folders_whose_names_differ_in_spelling_are_one_persons(
    tmp_path: Path, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(["Zoe\u0308", "ann", "bob", "bob ", "Zo\u00eb"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(noise(number))
    source = open_source(f"{scheme}{tmp_path}")
    found = sorted((source.identities[label], source.read(n)) for n, label in enumerate(source.labels))
    assert list(source.identities) == ["Zo\u00eb", "ann", "bob"]
    assert found == sorted((who, noise(n)) for n, who in enumerate(["Zo\u00eb", "ann", "bob", "bob", "Zo\u00eb"]))
    assert "2 names are kept without blanks" in caplog.text


def test_7_and_07_may_be_two_people(images: Path) -> None:
    (images / "l.txt").write_text("my face 0.jpg\t7\nmy face 1.jpg\t07\n")
    assert list(open_source(images / "l.txt").identities) == ["07", "7"]
    assert sorted_identities(["10", "٩"])[0] == ["10", "٩"], "other digits are letters"


def test_a_list_becomes_shards(images: Path) -> None:
    lines = ["my face 0.jpg 1", "my face 1.jpg 2", "absent.jpg 2", "nothing", f"{'x' * 300}.jpg 1", "zero\0.jpg 1"]
    (images / "list.txt").write_text("\n".join(lines))
    plan = make_plan(open_source(images / "list.txt"), images / "out", seed=0, samples_per_tar=9, size=None)
    manifest = made(plan)
    assert (manifest.samples, manifest.identities, manifest.made.source) == (2, 2, "list")
    assert (images / "out" / "rejected.tsv").read_text().splitlines()[1:] == [
        "absent.jpg\tunreadable: No such file or directory",
        "list.txt:4\tno identity: wanted path, tab, identity",
        f"{'x' * 300}.jpg\tunreadable: File name too long",
        "zero\0.jpg\ta null character in the path",
    ]


def test_a_list_may_begin_with_a_person_who_is_missing(images: Path) -> None:
    (images / "list.txt").write_text("".join(f"{n}.jpg\tann\n" for n in range(200)) + "my face 1.jpg\tbob\n")
    manifest = made(make_plan(open_source(images / "list.txt"), images / "out", seed=0, samples_per_tar=150, size=None))
    assert (manifest.samples, manifest.set_aside) == (1, 201)


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
