"""Tars as a source: of this project and of other tools, plain and odd, cut and damaged."""

import gzip
import io
import mmap
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.images import SetAsideError
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources.detect import Options, open_source
from pipeline.shards.sources.loss import TooManyRejectedError
from pipeline.shards.sources.splits import Choice
from pipeline.shards.sources.tar_folder import TarSource
from pipeline.shards.sources.tar_headers import name_at, plain_samples
from pipeline.shards.sources.tar_walk import TarSample, samples_of, split_name, walk
from tests.shards import contents, noise, write_tar_of

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def tar_of(members: list[tuple[str, bytes]], kind: str = "ustar", mtime: float = 0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[kind]) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(4):
        (tmp_path / f"my face {number}.jpg").write_bytes(noise(number))
    return tmp_path


@pytest.fixture
def shards(images: Path) -> Path:
    """4 faces of 3 people in two tars."""
    lines = [f"my face {n}.jpg\t{who}" for n, who in enumerate(["zoe", "adam", "zoe", "bea"])]
    (images / "list.txt").write_text("\n".join(lines))
    plan = make_plan(open_source(images / "list.txt"), images / "shards", seed=0, samples_per_tar=2, size=None)
    make_shards(plan)
    return images / "shards"


def test_tars_are_listed_in_their_order_by_any_number_of_workers(shards: Path) -> None:
    sources = [open_source(shards, options=Options(workers=workers)) for workers in (1, 2, 7)]
    assert [source.digest() for source in sources] == [sources[0].digest()] * 3
    assert isinstance(sources[1], TarSource)
    assert sources[1].places["tar"].tolist() == [0, 0, 1, 1]


def test_shards_are_a_source(shards: Path) -> None:
    source = open_source(shards)
    assert contents(source) == {
        f"my face {n}.jpg": (who, noise(n)) for n, who in enumerate(["zoe", "adam", "zoe", "bea"])
    }
    assert not source.set_aside
    out = shards.parent / "again"
    manifest = make_shards(make_plan(source, out, seed=3, samples_per_tar=3, size=None))
    assert manifest is not None
    assert (manifest.samples, len(manifest.tars), manifest.made.source) == (4, 2, "tars")
    assert contents(open_source(out)) == contents(source)


@pytest.mark.parametrize("kind", FORMATS)
def test_tars_of_other_tools_are_a_source(tmp_path: Path, kind: str) -> None:
    deep = "d" * (60 if kind == "ustar" else 200) + "/x.y/"
    members = {f"{deep}a.jpg": noise(1), f"{deep}a.cls": b"12", "b.cls": b"3", "b.png": noise(2, "PNG")}
    members |= {"c.jpg": noise(3), "d.cls": b"4", "e.jpg": noise(5), "e.cls": b"x", "README": b"hello"}
    # Times with fractions need an extended header in the pax format.
    (tmp_path / "a.tar").write_bytes(tar_of(list(members.items()), kind, mtime=1.5))
    source = open_source(tmp_path)
    assert [(source.identities[label], source.read(i)) for i, label in enumerate(source.labels)] == [
        ("12", noise(1)),
        ("03", noise(2, "PNG")),
    ]
    assert [path for path, _, _ in source.set_aside] == ["a.tar:c", "a.tar:d", "a.tar:e", "a.tar:README"]


def test_names_of_labels_come_from_identities_txt(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([("a.jpg", noise(1)), ("a.cls", b"2")]))
    (tmp_path / "identities.txt").write_text("adam\nbea\nzoe\n")
    assert list(open_source(tmp_path).identities) == ["zoe"]
    (tmp_path / "identities.txt").write_text("adam\n")
    with pytest.raises(ShardError, match=r"identities\.txt: got 1 names, wanted one for label 2"):
        open_source(tmp_path)


def test_a_name_that_cannot_be_used_costs_its_person_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [
        (f"{n}.{kind}", noise(n) if kind == "jpg" else b"%d" % (n % 3)) for n in range(6) for kind in ("jpg", "cls")
    ]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    (tmp_path / "identities.txt").write_bytes("Zoe\u0308 \n".encode() + b"\xff\n" + "佐藤\u3000健\n".encode())
    source = open_source(tmp_path)
    found = [(source.identities[label], source.read(n)) for n, label in enumerate(source.labels)]
    assert found == [(("Zo\u00eb", "佐藤\u3000健")[n % 3 // 2], noise(n)) for n in (0, 2, 3, 5)]
    assert list(source.set_aside) == [("identities.txt:2", "wanted a printable UTF-8 name; rename it", 2)]
    assert "identities.txt: 1 names are kept without blanks" in caplog.text


def test_a_tar_cut_anywhere_gives_what_is_whole(shards: Path) -> None:
    tar = shards / "faces-000000.tar"
    whole, truth = tar.read_bytes(), contents(open_source(shards))
    for size in range(0, len(whole), 211):
        tar.write_bytes(whole[:size])
        # Where the cut takes the key, the place in the tar is the name.
        assert set(contents(open_source(shards)).values()) <= set(truth.values())


def test_a_tar_cut_between_two_samples_is_said_to_be_cut(tmp_path: Path) -> None:
    """`tarfile` takes the end of the file for that of the tar."""
    whole = tar_of([(f"{n}.{end}", noise(n) if end == "jpg" else b"5") for n in range(4) for end in ("jpg", "cls")])
    (tmp_path / "a.tar").write_bytes(whole[: whole.index(b"2.jpg")])
    source = open_source(tmp_path)
    assert len(source.labels) == 2
    ((path, reason, _),) = source.set_aside
    assert (path, reason) == ("a.tar", "cut: it ends without the zeros that close a tar")


def test_a_label_cut_in_two_is_no_label(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([("a.jpg", noise(1)), ("a.cls", b"12")]))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: whole.index(b"12\0", 1024) + 1])
    with pytest.raises(ShardError, match="without labelled images"):
        open_source(tmp_path)


def test_tars_without_faces_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of([("a.xml", b"")]))
    with pytest.raises(ShardError, match=r"got 1 tar without labelled images, wanted \.jpg or \.png with \.cls"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "damaged: empty file"),
        (b"no tar" * 200, "damaged: .* header"),
        (gzip.compress(tar_of([("a.jpg", b"1"), ("a.cls", b"1")])), "compressed with gzip: wanted a plain tar; .*"),
    ],
)
def test_what_is_no_tar_is_set_aside(shards: Path, content: bytes, wanted: str) -> None:
    (shards / "a.tar").write_bytes(content)
    source = open_source(shards)
    ((path, reason, samples),) = source.set_aside
    assert (path, len(source.labels)) == ("a.tar", 4)
    assert re.fullmatch(wanted, reason)
    assert samples >= 1


SOUND: dict[str, list[tuple[str, bytes]]] = {
    "a line break behind the label": [
        ("a.jpg", noise(1)),
        ("a.cls", b"12\n"),
        ("b.jpg", noise(2)),
        ("b.cls", b"3\r\n"),
    ],
    "macOS's files beside files": [
        *(("._a.jpg", b"x"), ("a.jpg", noise(1)), ("._a.cls", b"x"), ("a.cls", b"12"), ("__MACOSX/b.jpg", b"x")),
        *(("b.jpg", noise(2)), ("x/._b.cls", b"x"), ("b.cls", b"3")),
    ],
    "all images before all labels": [("a.jpg", noise(1)), ("b.jpg", noise(2)), ("a.cls", b"12"), ("b.cls", b"3")],
    "labels in another order": [("b.cls", b"3"), ("a.cls", b"12"), ("a.jpg", noise(1)), ("b.jpg", noise(2))],
    "two samples of one name": [("a.jpg", noise(1)), ("a.cls", b"12"), ("a.jpg", noise(2)), ("a.cls", b"3")],
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", SOUND)
def test_a_sound_tar_gives_all_of_its_samples(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(SOUND[name], kind))
    source = open_source(tmp_path)
    found = [(source.identities[label], source.read(i)) for i, label in enumerate(source.labels)]
    assert sorted(found) == sorted([("12", noise(1)), ("03", noise(2))])
    assert source.set_aside == []


def test_tars_put_end_to_end_are_read_to_the_end(tmp_path: Path) -> None:
    tars = [tar_of([("a.jpg", noise(n)), ("a.cls", b"%d" % n)]) for n in range(3)]
    (tmp_path / "a.tar").write_bytes(b"".join(tars))
    source = open_source(tmp_path)
    assert [source.read(i) for i in range(3)] == [noise(n) for n in range(3)]
    assert source.set_aside == []


def test_images_before_all_labels_are_joined_with_their_own(tmp_path: Path) -> None:
    """Twice in one tar, as in two that were put end to end; and with an image whose name was there already."""
    names = ["0.jpg", "1.jpg", "0.cls", "1.cls"]
    members = [(name, noise(n) if name.endswith("jpg") else b"%d" % (n % 2)) for n, name in enumerate(names * 2)]
    write_tar_of(tmp_path / "a.tar", members)
    source = open_source(tmp_path / "a.tar")
    assert [source.read(n) for n in range(4)] == [noise(n) for n in (0, 1, 4, 5)]
    write_tar_of(tmp_path / "a.tar", [*members[:2], ("0.jpg", noise(9)), members[3], members[2]])
    source = open_source(tmp_path / "a.tar")
    assert [source.read(n) for n in range(2)] == [noise(0), noise(1)]
    assert [one.reason for one in source.set_aside] == ["no label: wanted .cls"]


def test_a_sparse_file_is_no_image(tmp_path: Path) -> None:
    """Of GNU's tar, which leaves the holes out: its bytes do not lie where they seem to."""
    with (tmp_path / "0.jpg").open("wb") as file:
        file.truncate(1 << 18)
        file.seek(0, 2)
        file.write(noise(0))
    note = b'{"note": "%s"}' % (b"x" * (1 << 18))  # so much follows that the file would seem to be there
    for name, data in (("0.cls", b"7"), ("1.jpg", noise(1)), ("1.cls", b"8"), ("1.json", note)):
        (tmp_path / name).write_bytes(data)
    names = ["0.jpg", "0.cls", "1.jpg", "1.cls", "1.json"]
    subprocess.run(["tar", "--sparse", "--format=gnu", "-cf", "a.tar", *names], cwd=tmp_path, check=True)
    assert (tmp_path / "a.tar").stat().st_size < 1 << 19
    source = open_source(tmp_path / "a.tar")
    assert [source.read(n) for n in range(len(source.labels))] == [noise(1)]
    assert [one.reason for one in source.set_aside] == ["no whole image: wanted .jpg or .png"]


def test_tars_of_several_splits_want_a_choice(tmp_path: Path) -> None:
    for number, name in enumerate(("train-000000.tar", "train-000001.tar", "test-000000.tar")):
        (tmp_path / name).write_bytes(tar_of([("a.jpg", noise(number)), ("a.cls", b"1")]))
    with pytest.raises(ShardError, match="got splits test, train, wanted --split"):
        open_source(tmp_path)
    source = open_source(tmp_path, options=Options(choice=Choice(splits=("train",))))
    assert [source.read(i) for i in range(len(source.labels))] == [noise(0), noise(1)]
    assert open_source(tmp_path / "test-*.tar").read(0) == noise(2)


def test_what_lies_behind_damage_counts_as_lost(tmp_path: Path) -> None:
    """A damaged header in the middle: `tarfile` ends there without an error."""
    members = [(f"{n:03d}.{end}", noise(n) if end == "jpg" else b"5") for n in range(100) for end in ("jpg", "cls")]
    tar = bytearray(tar_of(members))
    tar[tar.index(b"007.jpg") + 150] ^= 1
    (tmp_path / "a.tar").write_bytes(tar)
    source = open_source(tmp_path)
    assert len(source.labels) == 7
    ((path, reason, samples),) = source.set_aside
    assert (path, reason.split(" at byte ")[0]) == ("a.tar", "damaged: no header")
    assert samples == pytest.approx(93, abs=10)
    with pytest.raises(
        TooManyRejectedError, match=r"tars: \d+ of \d+ samples set aside \(9\d\.\d%\), wanted at most 1"
    ):
        make_plan(source, tmp_path / "out", seed=0, samples_per_tar=9, size=None, max_rejected=0.01)


@pytest.mark.parametrize("is_signed", [False, True])
def test_a_size_below_zero_is_damage_and_leads_nowhere(tmp_path: Path, is_signed: bool) -> None:
    tar = bytearray(
        tar_of([(f"{n}.{end}", noise(n) if end == "jpg" else b"5") for n in (0, 1) for end in ("jpg", "cls")])
    )
    at = tar.index(b"1.jpg")
    tar[at + 124 : at + 135] = b"-0000001000"  # from the header's end back to its beginning
    if is_signed:
        tar[at + 148 : at + 156] = b" " * 8
        tar[at + 148 : at + 156] = b"%06o\0 " % sum(tar[at : at + 512])
    (tmp_path / "a.tar").write_bytes(tar)
    source = open_source(tmp_path)
    assert [source.read(sample) for sample in range(len(source.labels))] == [noise(0)]
    ((_, reason, _),) = source.set_aside
    assert reason.startswith("damaged: ")


@pytest.mark.parametrize(
    ("members", "reason", "samples"),
    [
        ([("a.jpg", noise(1)), ("a.cls", b"ann")], "label: wanted a number in .cls", 1),
        ([("a.jpg", noise(1))], "no label: wanted .cls", 1),
        ([("a.cls", b"1")], "no whole image: wanted .jpg or .png", 1),
        ([("README", b"1")], "neither image nor label: wanted .jpg or .png, and .cls", 0),
    ],
)
def test_what_is_no_sample_has_its_reason(
    shards: Path, members: list[tuple[str, bytes]], reason: str, samples: int
) -> None:
    (shards / "a.tar").write_bytes(tar_of(members))
    assert open_source(shards).set_aside == [(f"a.tar:{members[0][0].partition('.')[0]}", reason, samples)]
    for path in shards.glob("faces-*"):
        path.unlink()
    with pytest.raises(ShardError, match=f"without labelled images.*; 1 × {reason}"):
        open_source(shards)


# --- many headers at once ----------------------------------------------------------------------------------


def at_once(data: bytes) -> list[TarSample] | None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = plain_samples(mapped)
        if found is None:
            return None
        return [TarSample(split_name(name_at(mapped, header))[0], *rest) for header, *rest in found.tolist()]


def by_tarfile(data: bytes) -> list[TarSample]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return list(samples_of(file, walk(file)))


NAMES = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "", "a/", "a.b/", "./", "d" * 60 + "/", "e" * 120 + "/"]),
    st.sampled_from(["1", "1", "2", "ß", "", "1" * 90]),
    st.sampled_from([".jpg", ".JPG", ".jpeg", ".png", ".cls", ".json", ".x.jpg", ".jpgs", "", ".", ".jsonl", ".Cls"]),
).filter(lambda name: name.strip("/."))
CONTENTS = st.sampled_from([b"", b"0", b"12", b"9" * 18, b"9" * 19, b"1 ", b"-1", b"\xff\xd8" + bytes(600), b"7" * 512])
MEMBERS = st.lists(st.tuples(NAMES, CONTENTS), max_size=12)


@given(members=MEMBERS, kind=st.sampled_from(list(FORMATS)), mtime=st.sampled_from([0, 1.5]))
@settings(deadline=None, max_examples=150)
def test_headers_at_once_say_what_tarfile_says(members: list[tuple[str, bytes]], kind: str, mtime: float) -> None:
    if kind == "ustar":
        members = [(name, content) for name, content in members if len(name.encode()) <= 100]
    data = tar_of(members, kind, mtime)
    found = at_once(data)
    assert found is None or found == by_tarfile(data)


@pytest.mark.parametrize(("kind", "mtime"), [("ustar", 0), ("gnu", 0), ("pax", 0), ("pax", 1.5)])
@pytest.mark.parametrize("at_a_time", [1, 2, 100])
def test_plain_tars_are_not_left_to_tarfile(
    kind: str, mtime: float, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.shards.sources.tar_headers.AT_ONCE", at_a_time)
    members = [("./", b"")]
    for number in range(7):
        members += [(f"./{number}.{end}", b"%d" % number * 5) for end in ("jpg", "cls", "json")]
    data = tar_of(members, kind, mtime)
    found = at_once(data)
    assert found == by_tarfile(data)
    assert [sample.label for sample in found] == [int(str(number) * 5) for number in range(7)]


@given(members=MEMBERS, data=st.data())
@settings(deadline=None, max_examples=150)
def test_damage_never_gives_what_tarfile_would_not(members: list[tuple[str, bytes]], data: st.DataObject) -> None:
    tar = bytearray(tar_of(members, "gnu"))
    for _ in range(data.draw(st.integers(1, 3))):
        # In a header more often than not: payloads may be anything.
        place = data.draw(st.integers(0, len(tar) // 512 - 1)) * 512 + data.draw(st.integers(0, 511))
        tar[place] ^= data.draw(st.integers(1, 255))
    found = at_once(bytes(tar))
    if found is None:
        return
    try:
        assert found == by_tarfile(bytes(tar))
    except SetAsideError:
        pytest.fail("tarfile says that it is damaged")


@given(members=MEMBERS, size=st.integers(1, 20_000))
@settings(deadline=None, max_examples=60)
def test_a_cut_tar_is_left_to_tarfile(members: list[tuple[str, bytes]], size: int) -> None:
    tar = tar_of(members, "gnu")
    found = at_once(tar[:size])
    if found is not None:  # cut in its zeros
        assert found == by_tarfile(tar[:size])
