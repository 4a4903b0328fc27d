"""RecordIO written here byte for byte after the format, read back, and damaged in every field."""

import random
import struct
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards.format.index import open_index
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources import insightface
from pipeline.shards.sources.detect import Options, open_source
from pipeline.shards.sources.recordio import part_starts, read_record
from pipeline.shards.sources.splits import Choice
from tests.shards import contents, made, noise

MAGIC = struct.pack("<I", 0xCED7230A)


def write_record(data: bytes) -> bytes:
    """dmlc-core's writer: split at aligned magic words, which are left out; pad each part to 4 bytes."""
    cuts = [i for i in range(0, len(data) - 3, 4) if data[i : i + 4] == MAGIC]
    starts, stops = [0, *(i + 4 for i in cuts)], [*cuts, len(data)]
    out = b""
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        kind = 0 if not cuts else 1 if number == 0 else 3 if number == len(cuts) else 2
        part = data[start:stop]
        out += MAGIC + struct.pack("<I", kind << 29 | len(part)) + part + bytes(-len(part) % 4)
    return out


def image_record(key: int, labels: Sequence[float], payload: bytes) -> bytes:
    if len(labels) == 1:
        return struct.pack("<IfQQ", 0, labels[0], key, 0) + payload
    return struct.pack("<IfQQ", len(labels), 0, key, 0) + struct.pack(f"<{len(labels)}f", *labels) + payload


@dataclass
class Packed:
    """A set as InsightFace packs it: people 0..4 with 1, 2, 3, 4 and 5 images, keys from 1."""

    folder: Path
    truth: dict[str, tuple[str, bytes]]
    offsets: list[int]
    rec: bytes

    def write(self, rec: bytes) -> None:
        (self.folder / "train.rec").write_bytes(rec)


def pack(folder: Path, several_labels: bool = False) -> Packed:
    people = 5
    truth: dict[str, tuple[str, bytes]] = {}
    records: list[bytes] = []
    ranges: list[tuple[int, int]] = []
    for person in range(people):
        start = len(records) + 1
        for number in range(person + 1):
            key = len(records) + 1
            payload = noise(10 * person + number, "PNG" if key == 3 else "JPEG")
            # An image may hold the magic word, on a word boundary or off it.
            payload += (MAGIC * 2 + payload[-2:]) if key in {5, 6} else b""
            if key == 6:
                payload = payload[:-10] + b"." * (-len(payload) % 4 + 1) + payload[-10:]
            labels = [person, 7.0, 8.5] if several_labels else [person]
            records.append(image_record(key, labels, payload))
            truth[f"{person}/{key}"] = str(person), payload
        ranges.append((start, len(records) + 1))
    images = len(records)
    records += [image_record(images + 1 + i, pair, b"") for i, pair in enumerate(ranges)]
    records.insert(0, image_record(0, [images + 1, images + 1 + people], b""))
    rec, offsets = b"", []
    for record in records:
        offsets.append(len(rec))
        rec += write_record(record)
    (folder / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in enumerate(offsets)))
    (folder / "property").write_text(f"{people},8,8")
    packed = Packed(folder, truth, offsets, rec)
    packed.write(rec)
    return packed


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    return pack(tmp_path)


@pytest.fixture(params=[insightface.CHUNK, 1, 4])
def records_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insightface, "CHUNK", request.param)


def test_a_packed_set_is_read_by_its_index(packed: Packed) -> None:
    source = open_source(packed.folder)
    assert contents(source) == packed.truth
    assert list(source.identities) == list("01234")
    assert not source.set_aside


def test_a_packed_set_is_read_without_index_and_property(packed: Packed) -> None:
    with_index = open_source(packed.folder)
    (packed.folder / "train.idx").unlink()
    (packed.folder / "property").unlink()
    source = open_source(packed.folder)
    assert contents(source) == packed.truth
    assert source.digest() == with_index.digest()
    assert not source.set_aside


def test_a_record_file_of_any_name_is_read_by_path_or_folder(packed: Packed, tmp_path: Path) -> None:
    for suffix in ("rec", "idx"):
        (tmp_path / f"train.{suffix}").rename(tmp_path / f"casia.{suffix}")
    for place in (tmp_path, tmp_path / "casia.rec", f"file://{tmp_path}"):
        source = open_source(place, copies=tmp_path / "copies")
        assert contents(source) == packed.truth
        assert not source.set_aside
    (tmp_path / "casia.rec").write_bytes(packed.rec[: packed.offsets[9] + 40])
    assert open_source(tmp_path / "casia.rec").set_aside[0][0] == "casia.rec:9"
    (tmp_path / "casia.idx").unlink()
    assert open_source(tmp_path / "casia.rec").set_aside[0][0] == "casia.rec:0"


def test_of_several_record_files_train_or_the_one_that_is_chosen_is_read(packed: Packed, tmp_path: Path) -> None:
    (tmp_path / "val.rec").write_bytes(write_record(image_record(1, [7], noise(7))))
    assert contents(open_source(tmp_path)) == packed.truth
    (other,) = contents(open_source(tmp_path, options=Options(choice=Choice(splits=("validation",))))).values()
    assert other == ("7", noise(7))
    assert len(open_source(tmp_path / "v*.rec").labels) == 1
    (tmp_path / "train.rec").rename(tmp_path / "a.rec")
    (tmp_path / "val.rec").rename(tmp_path / "b.rec")
    with pytest.raises(ShardError, match=r"got a\.rec, b\.rec, wanted one record file: give its path"):
        open_source(tmp_path)


def test_the_first_of_several_labels_counts(tmp_path: Path) -> None:
    packed = pack(tmp_path, several_labels=True)
    source = open_source(tmp_path)
    assert contents(source) == packed.truth
    assert not source.set_aside


def test_labels_may_have_gaps(tmp_path: Path) -> None:
    records = [write_record(image_record(k, [label], noise(k))) for k, label in enumerate([3, 100, 3])]
    (tmp_path / "train.rec").write_bytes(b"".join(records))
    source = open_source(tmp_path)
    assert list(source.identities) == ["003", "100"]
    assert source.labels.tolist() == [0, 1, 0]


def test_a_packed_set_becomes_the_same_shards_as_its_folder(packed: Packed, tmp_path: Path) -> None:
    for key, (person, payload) in packed.truth.items():
        path = tmp_path / "folder" / person / f"{int(key.split('/')[1]):02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)
    found = []
    for name in ("folder", "."):
        source = open_source(tmp_path / name)
        out = tmp_path / "out" / (name if name != "." else "packed")
        manifest = made(make_plan(source, out, seed=5, samples_per_tar=4, size=None), workers=2)
        found.append([(int(r["size"]), int(r["label"])) for r in open_index(out, manifest)])
    assert found[0] == found[1]


@given(data=st.lists(st.sampled_from([MAGIC, b"abcd", b"x", MAGIC[:2]]), max_size=12).map(b"".join))
@settings(deadline=None, max_examples=200)
def test_any_record_reads_back(data: bytes) -> None:
    rec = write_record(data) + write_record(b"next")
    assert part_starts(np.frombuffer(rec, "<u4")).tolist() == [0, len(write_record(data))]
    with tempfile.TemporaryFile() as file:
        file.write(rec)
        file.flush()
        assert read_record(file.fileno(), 0) == data


# --- RecordIO: damaged in every field ----------------------------------------------------------------------


def assert_no_wrong_label(packed: Packed) -> None:
    """Every image that is still found has its own identity; the rest is named."""
    try:
        source = open_source(packed.folder)
    except ShardError:
        return
    assert len({source.key(i) for i in range(len(source.labels))}) == len(source.labels)
    person_of = {key.split("/")[1]: person for key, (person, _) in packed.truth.items()}
    person_of_image = {payload: person for person, payload in packed.truth.values()}
    for key, (person, payload) in contents(source).items():
        if payload in person_of_image:
            assert person_of_image[payload] == person
        elif payload[:2] == b"\xff\xd8" and (packed.folder / "train.idx").exists():
            assert person_of[key.split("/")[1]] == person


FIELDS = {"magic": 0, "lrec": 4, "flag": 8, "label": 12, "id": 16, "payload": 32}


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_with_any_value_never_gives_a_wrong_label(packed: Packed, field: str, with_index: bool) -> None:
    chance = random.Random(field)
    if not with_index:
        (packed.folder / "train.idx").unlink()
    values = [0, 1, 2, 3, 4, 0xFFFFFFFF, 0x7FC00000, 1 << 29, 3 << 29, 0xCED7230A, 1 << 20]
    values += [struct.unpack("<I", struct.pack("<f", x))[0] for x in (0.0, 1.0, 2.0, 4.0, 5.0, -1.0, 2.5)]
    for offset in packed.offsets:
        for value in [*chance.sample(values, 8), chance.getrandbits(32)]:
            rec = bytearray(packed.rec)
            struct.pack_into("<I", rec, offset + FIELDS[field], value)
            packed.write(bytes(rec))
            assert_no_wrong_label(packed)


@pytest.mark.parametrize("with_index", [True, False])
def test_a_file_cut_anywhere_never_gives_a_wrong_label(packed: Packed, with_index: bool) -> None:
    if not with_index:
        (packed.folder / "train.idx").unlink()
    for size in range(0, len(packed.rec), 37):
        packed.write(packed.rec[:size])
        assert_no_wrong_label(packed)


def test_a_cut_file_says_what_is_missing(packed: Packed) -> None:
    (packed.folder / "train.idx").unlink()
    packed.write(packed.rec[: packed.offsets[8] + 50])
    assert ("train.rec:0", "describes 15 images: got 8", 7) in open_source(packed.folder).set_aside
    assert ("train.rec:8", "truncated: the file ends in it (label 3)", 1) in open_source(packed.folder).set_aside


@pytest.mark.usefixtures("records_at_once")
def test_a_wrong_label_is_found_by_the_identity_records(packed: Packed) -> None:
    rec = bytearray(packed.rec)
    struct.pack_into("<f", rec, packed.offsets[7] + 12, 2.0)
    packed.write(bytes(rec))
    source = open_source(packed.folder)
    reason = "label: not that of the other images of its identity record (label 2)"
    assert source.set_aside == [("train.rec:7", reason, 1)]
    assert len(source.labels) == 14


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("magic", b"\0\0\0\0", "no record at its offset (label 3)"),
        ("lrec", struct.pack("<I", 1 << 28), "truncated: the file ends in it (label 3)"),
        ("lrec", struct.pack("<I", 64), "length: it is not followed by a record (label 3)"),
        ("lrec", struct.pack("<I", 2 << 29 | 64), "no record at its offset (label 3)"),
        ("flag", struct.pack("<I", 1 << 31), "image header: more labels than bytes (label -1.47486e+20)"),
        ("label", struct.pack("<f", 2.5), "label: not a whole number of at least 0 (label 2.5)"),
        ("label", struct.pack("<f", 5), "label: not that of the other images of its identity record (label 5)"),
        ("label", struct.pack("<f", -1), "label: not a whole number of at least 0 (label -1)"),
        ("label", struct.pack("<f", float("nan")), "label: not a whole number of at least 0 (label nan)"),
    ],
)
def test_a_damaged_field_has_its_reason(packed: Packed, field: str, value: bytes, reason: str) -> None:
    at = packed.offsets[8] + FIELDS[field]
    packed.write(packed.rec[:at] + value + packed.rec[at + len(value) :])
    # The record before ends where no record begins, which is a fault of its own when the magic word is gone.
    found = [why for path, why, _ in open_source(packed.folder).set_aside if path == "train.rec:8"]
    assert found == [reason]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("1\tabc\n", "got a line that is not a key and an offset"),
        ("1\n", "got a line that is not a key and an offset"),
        ("1\t4\n2\t8\n", r"got no usable image in 2 records; the first fault: train.rec:1: no record at its offset"),
        ("", "got an empty index, wanted keys and offsets"),
        ("1\t-4\n2\t99999999\n", "no record at its offset"),
    ],
)
def test_a_bad_index_is_named(packed: Packed, index: str, message: str) -> None:
    (packed.folder / "train.idx").write_text(index)
    with pytest.raises(ShardError, match=message):
        open_source(packed.folder)


def test_a_record_listed_twice_is_taken_once(packed: Packed) -> None:
    index = packed.folder / "train.idx"
    index.write_text(index.read_text() + f"500\t{packed.offsets[4]}\n")
    source = open_source(packed.folder)
    assert contents(source) == packed.truth
    assert [path for path, _, _ in source.set_aside] == ["train.rec:500"]


@pytest.mark.parametrize("said", ["many,8,8", "4,8,8", ""])
def test_property_is_a_hint_that_warns(packed: Packed, caplog: pytest.LogCaptureFixture, said: str) -> None:
    (packed.folder / "property").write_text(said)
    assert contents(open_source(packed.folder)) == packed.truth
    (record,) = caplog.records
    assert f"property: got {said.split(',', maxsplit=1)[0]!r} identities, the records have 5" in record.message


# --- sets as InsightFace's own tool packs a list: an identity record for each run of equal labels ---------------


def pack_list(
    folder: Path, labels: Sequence[int], appended: Sequence[int] = (), people: int | None = None
) -> list[int]:
    """What face2rec2.py writes of a list of labels, and of one appended later; returns the label of each image."""
    records: dict[int, bytes] = {}
    next_key = 1
    for part in (labels, appended):
        runs = []
        for label, run in groupby(part):
            start = next_key
            for _ in run:
                records[next_key] = image_record(next_key, [label, 1.0], noise(next_key))
                next_key += 1
            runs.append((start, next_key))
        if part is labels:
            records[0] = image_record(0, [next_key, next_key + len(runs)], b"")
        for pair in runs:
            records[next_key] = image_record(next_key, pair, b"")
            next_key += 1
    index, rec = "", b""
    for key, record in sorted(records.items()):
        index += f"{key}\t{len(rec)}\n"
        rec += write_record(record)
    (folder / "train.rec").write_bytes(rec)
    (folder / "train.idx").write_text(index)
    (folder / "property").write_text(f"{people or len({*labels, *appended})},8,8")
    return [*labels, *appended]


def each(people: Iterable[int], images: int = 5) -> list[int]:
    return [person for person in people for _ in range(images)]


PEOPLE = range(20)
LISTS: dict[str, tuple[list[int], list[int], int | None]] = {
    "whole": (each(PEOPLE), [], None),
    "one person removed before packing": (each(person for person in PEOPLE if person != 12), [], None),
    "one person in two runs": ([*each(range(12)), *each([3], 2), *each(range(12, 20))], [], None),
    "one person in two runs, one image in the second": ([*each(range(12)), 3, *each(range(12, 20))], [], None),
    "images of known and new people appended later": (each(PEOPLE), [*each([4, 20]), 7], None),
    "a property that is one short": (each(PEOPLE), [], 19),
    "in no order": (each([7, 2, 19, 0, 11, 5, 13]), [], None),
    "an image a person": (each([5, 1, 3, 0, 9], 1), [], None),
}


@pytest.mark.usefixtures("records_at_once")
@pytest.mark.parametrize("name", LISTS)
def test_every_image_of_a_sound_list_keeps_its_own_label(tmp_path: Path, name: str) -> None:
    labels, appended, people = LISTS[name]
    truth = pack_list(tmp_path, labels, appended, people)
    source = open_source(tmp_path)
    assert [int(source.identities[label]) for label in source.labels] == truth
    assert list(source.set_aside) == []


def test_a_damaged_identity_record_costs_no_image(tmp_path: Path) -> None:
    truth = pack_list(tmp_path, each(range(6)))
    rec = bytearray((tmp_path / "train.rec").read_bytes())
    offsets = [int(line.split()[1]) for line in (tmp_path / "train.idx").read_text().splitlines()]
    for record in range(31, 37):
        for start, end in ((3, 8), (0, 99), (9, 2), (12, 14)):
            broken = bytearray(rec)
            struct.pack_into("<2f", broken, offsets[record] + 32, start, end)
            (tmp_path / "train.rec").write_bytes(broken)
            source = open_source(tmp_path)
            kept = [int(source.identities[label]) for label in source.labels]
            assert len(kept) + len(source.set_aside) == len(truth)
            # At worst the images of one run are in doubt.
            assert len(truth) - len(kept) <= 5


@pytest.mark.usefixtures("records_at_once")
@pytest.mark.parametrize(("place", "label"), [(0, 3), (2, 4), (3, 1)])
def test_a_wrong_label_of_an_only_image_is_found_if_its_own_is_left_out(tmp_path: Path, place: int, label: int) -> None:
    labels = list(range(6))
    labels[place] = label
    pack_list(tmp_path, labels)
    source = open_source(tmp_path)
    assert [path for path, _, _ in source.set_aside] == [f"train.rec:{place + 1}"]
    assert len(source.labels) == 5


def test_an_empty_file_is_named(packed: Packed) -> None:
    packed.write(b"")
    with pytest.raises(ShardError, match=r"train\.rec: got 0 bytes, wanted records"):
        open_source(packed.folder)
