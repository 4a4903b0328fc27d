"""Tars of other tools: labels in other members, extensions with names, identity folders, compressed, in folders."""

import bz2
import gzip
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources import Source
from pipeline.shards.sources.columns import Columns
from pipeline.shards.sources.detect import Options, open_source
from pipeline.shards.sources.splits import Choice, choose, split_pattern
from tests.shards import contents, made, noise, write_tar_of

Members = list[tuple[str, bytes]]
PEOPLE = ["zoe", "adam", "zoe"]


def found(source: Source) -> list[tuple[str, bytes]]:
    return [(source.identities[label], source.read(i)) for i, label in enumerate(source.labels.tolist())]


TRUTH = [(person, noise(n)) for n, person in enumerate(PEOPLE)]


def members(label: Callable[[int, str], tuple[str, bytes]], image: str = "jpg") -> Members:
    """Samples of `PEOPLE`, each an image and what `label` makes of its number and person."""
    pairs = []
    for number, person in enumerate(PEOPLE):
        pairs += [(f"{number:03d}.{image}", noise(number)), label(number, person)]
    return pairs


def in_json(**more: object) -> Callable[[int, str], tuple[str, bytes]]:
    return lambda number, person: (f"{number:03d}.json", json.dumps({"label": person, **more}).encode())


LABELS: dict[str, Callable[[int, str], tuple[str, bytes]]] = {
    "txt": lambda number, person: (f"{number:03d}.txt", f"{person}\n".encode()),
    "id": lambda number, person: (f"{number:03d}.id", person.encode()),
    "a name in cls": lambda number, person: (f"{number:03d}.cls", person.encode()),
    "json": in_json(),
    "label.txt": lambda number, person: (f"{number:03d}.label.txt", person.encode()),
    "meta.json": lambda number, person: (f"{number:03d}.meta.json", json.dumps({"identity": person}).encode()),
}


@pytest.mark.parametrize("image", ["jpg", "image.jpg", "IMG.JPEG"])
@pytest.mark.parametrize("label", LABELS)
def test_labels_are_found_wherever_they_are(
    tmp_path: Path, label: str, image: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar_of(tmp_path / "a.tar", members(LABELS[label], image))
    source = open_source(tmp_path)
    assert found(source) == TRUTH
    assert source.set_aside == []
    assert "labels are taken from" in caplog.text


def test_numbers_keep_their_spelling_in_other_members(tmp_path: Path) -> None:
    write_tar_of(tmp_path / "a.tar", [("1.jpg", noise(1)), ("1.id", b"0000045"), ("2.jpg", noise(2)), ("2.id", b"7")])
    assert found(open_source(tmp_path)) == [("0000045", noise(1)), ("7", noise(2))]
    texts = [json.dumps({"class": value}).encode() for value in (12, 3.0, "07")]
    samples = [(f"{n}.{end}", noise(n) if end == "jpg" else texts[n]) for n in range(3) for end in ("jpg", "json")]
    write_tar_of(tmp_path / "a.tar", samples)
    assert found(open_source(tmp_path)) == [("12", noise(0)), ("3", noise(1)), ("07", noise(2))]


def test_a_label_in_json_is_no_field_and_all_else_is(tmp_path: Path) -> None:
    write_tar_of(tmp_path / "a.tar", members(in_json(quality=0.5, key="m.01")))
    one, *_ = open_source(tmp_path).read_many(np.arange(3))
    assert (one.key, one.fields) == ("m.01", {"quality": 0.5, "key": "m.01"})
    made(make_plan(open_source(tmp_path), tmp_path / "out", seed=0, samples_per_tar=2, size=None))
    assert {one.fields["quality"] for one in open_source(tmp_path / "out").read_many(np.arange(3))} == {0.5}


def test_a_sample_without_a_key_has_the_name_that_its_tar_gives_it(tmp_path: Path) -> None:
    write_tar_of(
        tmp_path / "a.tar", [*members(LABELS["id"]), ("d" * 200 + ".jpg", noise(9)), ("d" * 200 + ".id", b"x")]
    )
    source = open_source(tmp_path)
    place = (tmp_path / "a.tar").read_bytes().index(noise(9))
    assert [source.key(n) for n in range(4)] == ["a.tar:000", "a.tar:001", "a.tar:002", f"a.tar:{place}"]


def test_what_is_no_label_costs_its_sample_only(tmp_path: Path) -> None:
    others = [("3.jpg", noise(3)), ("3.json", b"{}"), ("4.jpg", noise(4)), ("4.json", b'{"label": [1]}')]
    others += [("6.jpg", noise(6)), ("6.json", b'{"label": true}')]
    write_tar_of(
        tmp_path / "a.tar", [*members(in_json()), *others, ("5.jpg", noise(5)), ("5.json", b'{"label": "a\\nb"}')]
    )
    source = open_source(tmp_path)
    assert found(source) == TRUTH
    reason = "label: wanted a printable name in label of .json"
    assert source.set_aside == [(f"a.tar:{number}", reason, 1) for number in (3, 4, 6, 5)]
    write_tar_of(
        tmp_path / "a.tar", [*members(LABELS["txt"]), ("3.jpg", noise(3)), ("3.txt", b"\xff"), ("4.jpg", noise(4))]
    )
    assert [one[:2] for one in open_source(tmp_path).set_aside] == [
        ("a.tar:3", "label: wanted a printable name in .txt"),
        ("a.tar:4", "no label: wanted .txt"),
    ]


def test_a_caption_beside_json_is_no_label(tmp_path: Path) -> None:
    """As img2dataset writes it."""
    samples = members(lambda number, _: (f"{number:03d}.json", b'{"url": "http://x"}'))
    samples += [(f"{number:03d}.txt", b"a woman in the sun") for number in range(3)]
    write_tar_of(tmp_path / "a.tar", sorted(samples))
    with pytest.raises(ShardError, match=r"got 1 tar without labelled images, wanted \.jpg or \.png with \.cls"):
        open_source(tmp_path)
    assert len(open_source(tmp_path, options=Options(Columns(label="txt"))).labels) == 3


def test_a_column_names_the_member_or_the_field(tmp_path: Path) -> None:
    samples: Members = []
    for number, person in enumerate(PEOPLE):
        note = json.dumps({"label": "x", "who": person}).encode()
        samples += [(f"{number}.face.jpg", noise(number)), (f"{number}.full.jpg", b"x"), (f"{number}.cls", b"5")]
        samples += [(f"{number}.json", note)]
    write_tar_of(tmp_path / "a.tar", samples)
    with pytest.raises(ShardError, match=r"got images face\.jpg, full\.jpg, wanted --image-column with one of them"):
        open_source(tmp_path)
    assert found(open_source(tmp_path, options=Options(Columns("face.jpg", "who")))) == TRUTH
    with pytest.raises(ShardError, match=r"got members face.jpg, .*, who in \.json, wanted pose \(--label-column\)"):
        open_source(tmp_path, options=Options(Columns("face.jpg", "pose")))


def test_of_several_the_one_that_is_called_image_and_the_shortest_label_count(tmp_path: Path) -> None:
    samples: Members = []
    for number, person in enumerate(PEOPLE):
        samples += [(f"{number}.depth.jpg", b"x"), (f"{number}.image.jpg", noise(number))]
        samples += [(f"{number}.caption.txt", b"a face"), (f"{number}.txt", person.encode())]
    write_tar_of(tmp_path / "a.tar", samples)
    assert found(open_source(tmp_path)) == TRUTH


def test_one_odd_label_does_not_make_names_of_numbers(tmp_path: Path) -> None:
    samples = [
        (f"{n}.{end}", noise(n) if end == "jpg" else label)
        for n, label in enumerate([b"ann", b"7", b"12"])
        for end in ("jpg", "cls")
    ]
    write_tar_of(tmp_path / "a.tar", samples)
    source = open_source(tmp_path)
    assert found(source) == [("07", noise(1)), ("12", noise(2))]
    assert source.set_aside == [("a.tar:0", "label: wanted a number in .cls", 1)]


IN_FOLDERS = [(f"CASIA/{person}/{n}.a.jpg", noise(n)) for n, person in enumerate(PEOPLE)]


def test_a_tar_of_identity_folders_is_a_source(tmp_path: Path) -> None:
    others = [("CASIA/zoe/._0.a.jpg", b"x"), ("CASIA/README.txt", b"x"), ("CASIA/zoe/x.gif", b"x"), ("a.jpg", noise(9))]
    write_tar_of(tmp_path / "a.tar", [*IN_FOLDERS, *others])
    for place in (tmp_path / "a.tar", tmp_path):
        source = open_source(place)
        assert found(source) == TRUTH
        assert source.key(0) == "CASIA/zoe/0.a.jpg"
        assert [one[0::2] for one in source.set_aside] == [
            ("CASIA/README.txt", 0),
            ("CASIA/zoe/x.gif", 1),
            ("a.jpg", 1),
        ]
    made(make_plan(source, tmp_path / "out", seed=1, samples_per_tar=2, size=None))
    assert contents(open_source(tmp_path / "out")) == {name: (name.split("/")[1], data) for name, data in IN_FOLDERS}


def test_a_tar_of_one_person_each_is_a_source_on_request(tmp_path: Path) -> None:
    for number, person in enumerate(PEOPLE[:2]):
        write_tar_of(tmp_path / f"{person}.tar", [("1.jpg", noise(number))])
    with pytest.raises(ShardError, match="without labelled images"):
        open_source(tmp_path)
    source = open_source(tmp_path, options=Options(Columns(label="tar")))
    assert sorted(found(source)) == sorted(TRUTH[:2])
    assert [source.key(number) for number in range(2)] == ["adam/1.jpg", "zoe/1.jpg"]
    write_tar_of(tmp_path / "dr. who.tar", [(f"{part}/7/7.jpg", noise(7)) for part in ("train", "test")])  # no splits
    assert list(open_source(tmp_path, options=Options(Columns(label="tar"))).identities) == ["adam", "dr. who", "zoe"]


def test_a_member_that_is_larger_than_any_image_is_no_sample(tmp_path: Path) -> None:
    members = [("0.jpg", noise(0), (1 << 30) + 1), ("0.cls", b"7", 1), ("1.jpg", noise(1), 0), ("1.cls", b"7", 1)]
    with (tmp_path / "a.tar").open("wb") as file:
        for name, content, size in members:
            info = tarfile.TarInfo(name)
            info.size = size or len(content)
            file.write(info.tobuf())
            start = file.tell()
            file.write(content)
            file.seek(start + -(-info.size // 512) * 512)  # a hole, which takes no room
        file.truncate(file.tell() + 1024)
    source = open_source(tmp_path / "a.tar")
    assert [source.read(sample) for sample in range(len(source.labels))] == [noise(1)]
    assert [(one.path, one.reason[:24]) for one in source.set_aside] == [("a.tar:0", "too large: got 1,073,741")]


def test_a_tar_of_the_folder_that_it_was_made_in_has_no_identity_folder(tmp_path: Path) -> None:
    write_tar_of(tmp_path / "a.tar", [("./0.jpg", noise(0))])
    with pytest.raises(ShardError, match=r"got 1 tar without labelled images, wanted \.jpg or \.png with \.cls"):
        open_source(tmp_path)


def test_a_cut_tar_of_identity_folders_says_what_is_lost(tmp_path: Path) -> None:
    write_tar_of(tmp_path / "a.tar", [(f"{n % 3}/{n}.jpg", noise(n)) for n in range(60)])
    whole = (tmp_path / "a.tar").read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(b"2/20.jpg") + 150] ^= 1
    (tmp_path / "a.tar").write_bytes(damaged)
    source = open_source(tmp_path)
    assert len(source.labels) == 20
    ((name, reason, samples),) = source.set_aside
    assert (name, reason.split(" at byte")[0]) == ("a.tar", "damaged: no header")
    assert samples == pytest.approx(40, abs=8)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "a.tar.gz": gzip.compress,
    "a.tgz": gzip.compress,
    "a.tar.bz2": bz2.compress,
    "a.txz": lzma.compress,
}


@pytest.mark.parametrize("samples", [IN_FOLDERS, members(LABELS["id"])], ids=["folders", "samples"])
@pytest.mark.parametrize("name", [*COMPRESSIONS, "a.tar"])
def test_a_compressed_tar_is_unpacked_once(tmp_path: Path, name: str, samples: Members) -> None:
    write_tar_of(tmp_path / "plain", samples)
    packed = COMPRESSIONS.get(name, gzip.compress)((tmp_path / "plain").read_bytes())
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / name).write_bytes(packed)
    copies = tmp_path / "copies"
    sources = [open_source(place, copies=copies) for place in (tmp_path / "tars", tmp_path / "tars" / name)]
    unpacked = (copies / ".unpacked" / name).stat()
    sources.append(open_source(tmp_path / "tars", copies=copies))
    assert (copies / ".unpacked" / name).stat() == unpacked
    sources += [open_source(f"file://{tmp_path}/tars", copies=tmp_path / "b") for _ in range(2)]
    assert list(map(found, sources)) == [TRUTH] * 5
    assert len({source.digest() for source in sources}) == 1
    write_tar_of(tmp_path / "plain", samples[:2])
    (tmp_path / "tars" / name).write_bytes(COMPRESSIONS.get(name, gzip.compress)((tmp_path / "plain").read_bytes()))
    assert len(open_source(tmp_path / "tars", copies=copies).labels) < 3, "one that changed is unpacked again"


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_cut_or_damaged_compressed_tar_is_refused(tmp_path: Path, name: str) -> None:
    write_tar_of(tmp_path / "plain", IN_FOLDERS)
    packed = COMPRESSIONS[name]((tmp_path / "plain").read_bytes())
    middle = len(packed) // 2
    for content in (packed[:-20], packed[:middle] + bytes(20) + packed[middle + 20 :]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ShardError, match=f"{name}: not unpacked: .*; wanted a whole file"):
            open_source(tmp_path / name, copies=tmp_path / "copies")
    assert not list((tmp_path / "copies" / ".unpacked").glob("[!.]*"))


def test_tars_in_folders_and_of_a_pattern_are_read(tmp_path: Path) -> None:
    for number, person in enumerate(PEOPLE):
        folder = tmp_path / f"part{number}"
        folder.mkdir()
        write_tar_of(folder / f"{number:02d}.tar", [("1.jpg", noise(number)), ("1.id", person.encode())])
    (tmp_path / "part0" / "log.txt").touch()
    write_tar_of(tmp_path / "part0" / ".00.tar", [("9.jpg", noise(9)), ("9.id", b"hidden")])
    assert found(open_source(tmp_path)) == TRUTH
    for pattern, wanted in (
        ("part[12]/*.tar", TRUTH[1:]),
        ("part{0,1}/{00..01}.tar", TRUTH[:2]),
        ("part?/01.tar", TRUTH[1:2]),
    ):
        assert found(open_source(tmp_path / pattern)) == wanted
        assert found(open_source(tmp_path / "part*" / "*.tar")) == TRUTH
    for place, parts in (
        ("/*.tar", ("/", "*.tar")),
        ("{0..9}.tar", (".", "{0..9}.tar")),
        ("a/b.tar", ("a/b.tar", "*")),
    ):
        assert split_pattern(place) == parts
    url = "https://host/a.tar?token=1"
    assert split_pattern(url) == (url, "*"), "a question mark begins a query"
    with pytest.raises(ShardError, match=r"got no file named part\*/x\.tar"):
        open_source(tmp_path / "part*" / "x.tar")


def test_splits_inside_an_archive_want_a_choice(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"got splits \(no split\), train, wanted --split"):
        choose(["train/a.tar", "b.tar"], Choice(), "here")
    write_tar_of(tmp_path / "a.tar", [("x/train/ann/1.jpg", noise(1)), ("x/test/bob/2.jpg", noise(2))])
    with pytest.raises(ShardError, match="got splits test, train, wanted --split"):
        open_source(tmp_path)
    for split, person, number in (("train", "ann", 1), ("test", "bob", 2)):
        source = open_source(tmp_path, options=Options(choice=Choice(splits=(split,))))
        assert found(source) == [(person, noise(number))]
        assert (list(source.identities), source.key(0)) == ([person], f"x/{split}/{person}/{number}.jpg")
