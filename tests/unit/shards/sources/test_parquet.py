"""Parquet as Hugging Face `datasets` lays it out: labels of every kind, damaged files, and the shards of it."""

import json
import shutil
import tracemalloc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.shards.checking.verify import verify
from pipeline.shards.format.index import open_index
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.images import SetAsideError
from pipeline.shards.making.one_tar import Written
from pipeline.shards.making.plan import make_plan
from pipeline.shards.making.sequential import make_set
from pipeline.shards.sources import Read, Source
from pipeline.shards.sources.columns import Columns
from pipeline.shards.sources.detect import Options, open_source
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.sources.parquet import ParquetSource
from pipeline.shards.sources.splits import Choice
from pipeline.shards.sources.tar_folder import open_tars
from pipeline.shards.workers import each_done
from tests.shards import made as complete
from tests.shards import noise, snapshot

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, images: Sequence[object], labels: Sequence[object], names: list[str] | None = None) -> None:
    table = arrow.table({"image": images, "label": labels, "more": [0] * len(labels)})
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, path, row_group_size=3)


def rows(count: int, start: int = 0) -> list[object]:
    return [{"bytes": noise(start + i), "path": f"{i}.jpg"} for i in range(count)]


def test_rows_of_several_files_are_samples(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(7), [3, 3, 10, 0, 3, 0, 10])
    write(tmp_path / "b.parquet", rows(4, start=7), [0, 0, 3, 3])
    source = open_source(tmp_path)
    assert list(source.identities) == ["00", "03", "10"]
    assert source.labels.tolist() == [1, 1, 2, 0, 1, 0, 2, 0, 0, 1, 1]
    assert [source.read(i) for i in range(11)] == [noise(i) for i in range(11)]
    assert [source.read(i) for i in (9, 2, 10, 0)] == [noise(i) for i in (9, 2, 10, 0)]
    assert source.key(8) == "00/b.parquet:8"


def test_a_huge_row_group_is_in_memory_a_few_rows_at_a_time(tmp_path: Path) -> None:
    size, count = 1000, 10_000
    image = np.random.default_rng(0).bytes(size)
    table = arrow.table({"image": [b"%04d" % i + image for i in range(count)], "label": [0] * count})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=count, use_dictionary=False)
    del table
    source = open_source(tmp_path / "a.parquet")
    before, in_arrow = arrow.total_allocated_bytes(), 0
    tracemalloc.start()
    try:
        for i in range(count):
            assert source.read(i)[:4] == b"%04d" % i
            in_arrow = max(in_arrow, arrow.total_allocated_bytes() - before)
        in_python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert in_arrow + in_python < size * count / 2
    assert [source.read(i)[:4] for i in (9999, 64, 63, 0)] == [b"9999", b"0064", b"0063", b"0000"]


def test_other_columns_are_fields_of_the_sample(tmp_path: Path) -> None:
    landmarks, quality = [[1.5, 2.0], [3.0, 4.0]], [0.5, None]
    columns = {"image": rows(2), "label": ["ann", "bob"], "landmarks": [landmarks, None], "quality": quality}
    more = {"key": ["m.0a/1.jpg", "m.0b/2.jpg"], "mask": [b"1", b"2"], "pose": [{"yaw": 3}, {"yaw": -4}]}
    parquet.write_table(arrow.table(columns | more), tmp_path / "a.parquet")
    first, second = open_source(tmp_path / "a.parquet").read_many(np.arange(2))
    assert first == Read(
        "ann/a.parquet:0",
        noise(0),
        {"landmarks": landmarks, "quality": 0.5, "key": "m.0a/1.jpg", "pose": {"yaw": 3}, "path": "0.jpg"},
    )
    assert second.fields["key"] == "m.0b/2.jpg"
    make_set(make_plan(open_source(tmp_path / "a.parquet"), tmp_path / "out", seed=1, samples_per_tar=9, size=None))
    kept = {one.key: one.fields for one in open_source(tmp_path / "out").read_many(np.arange(2))}
    assert kept == {"m.0a/1.jpg": first.fields, "m.0b/2.jpg": second.fields}


def test_class_names_and_strings_are_identities(tmp_path: Path) -> None:
    write(tmp_path / "classes.parquet", [noise(0), noise(1)], [2, 0], names=["ann", "bob", "cat"])
    source = open_source(tmp_path / "classes.parquet")
    assert [source.identities[label] for label in source.labels] == ["cat", "ann"]
    write(tmp_path / "strings.parquet", [noise(0), noise(1)], ["zoe", "adam"])
    source = open_source(tmp_path / "strings.parquet")
    assert [source.identities[label] for label in source.labels] == ["zoe", "adam"]


def test_one_name_in_two_spellings_is_one_person(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    people = ["Zoe\u0308", "0000045", "Zo\u00eb", "bob \t", "\ufeffbob", "佐藤\u3000健", "Ann\u00a0Lee"]
    wanted = ["Zo\u00eb", "0000045", "Zo\u00eb", "bob", "bob", "佐藤\u3000健", "Ann\u00a0Lee"]
    write(tmp_path / "strings.parquet", rows(7), people)
    write(tmp_path / "classes.parquet", rows(7), list(range(7)), names=people)
    for name in ("strings", "classes"):
        source = open_source(tmp_path / f"{name}.parquet")
        assert [source.identities[label] for label in source.labels] == wanted
        assert len(source.identities) == 5
        assert f"{name}.parquet: 3 names are kept without blanks" in caplog.text


def test_a_name_that_cannot_be_used_costs_its_person_only(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(4), ["ann", "b\x07b", "ann", "cat"])
    source = open_source(tmp_path / "a.parquet")
    assert [source.identities[label] for label in source.labels] == ["ann", "ann", "cat"]
    assert list(source.set_aside) == [
        ("a.parquet:1", "label: got 'b\\x07b', wanted a printable UTF-8 name; rename it", 1)
    ]


def test_rows_without_label_or_image_are_set_aside(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [*rows(3), None, {"bytes": None, "path": "x"}, *rows(1)], [1, None, -1, 1, 1, 1])
    source = open_source(tmp_path / "a.parquet")
    assert [path for path, _, _ in source.set_aside] == ["a.parquet:1", "a.parquet:2"]
    plan = make_plan(source, tmp_path / "out", seed=0, samples_per_tar=9, size=None)
    manifest = make_set(plan, workers=1, part=(0, 1), progress=lambda _samples: None)
    assert manifest is not None
    assert (manifest.samples, manifest.set_aside) == (2, 4)
    assert "1/a.parquet:3\tno image bytes in the row" in (tmp_path / "out" / "rejected.tsv").read_text()


def test_somebody_left_without_images_is_no_sample_that_was_lost(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [*rows(9), None], [*range(3)] * 3 + [3])
    source = open_source(tmp_path / "a.parquet")
    plan = make_plan(source, tmp_path / "out", seed=0, samples_per_tar=9, size=None, max_rejected=0.1)
    manifest = make_set(plan)
    assert manifest is not None
    assert (manifest.samples, manifest.identities, manifest.set_aside) == (9, 3, 2)


def test_parquet_becomes_the_shards_of_the_same_images_in_folders(tmp_path: Path) -> None:
    labels = [i % 4 for i in range(20)]
    write(tmp_path / "a.parquet", rows(20), labels)
    for number, label in sorted(enumerate(labels), key=lambda pair: pair[1]):
        (tmp_path / "folders" / str(label)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folders" / str(label) / f"{number:02d}.jpg").write_bytes(noise(number))
    seen: list[Written] = []
    plan = make_plan(open_source(tmp_path / "a.parquet"), tmp_path / "out", seed=1, samples_per_tar=6, size=None)
    made = make_set(plan, workers=2, part=(0, 1), progress=seen.append)
    assert made is not None
    assert made == Manifest.load(tmp_path / "out")
    assert (made.made.source, made.made.seed, sum(written.samples for written in seen)) == ("parquet", 1, 40)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "folders", "out"]
    assert verify(tmp_path / "out", decode_every=1) == []
    folders = complete(
        make_plan(scan_folder(tmp_path / "folders"), tmp_path / "other", seed=1, samples_per_tar=6, size=None)
    )
    assert images(tmp_path / "out", made) == images(tmp_path / "other", folders)
    again = make_set(plan, workers=1, part=(0, 1), progress=seen.append)
    assert (again, sum(written.samples for written in seen)) == (made, 40)


def images(folder: Path, manifest: Manifest) -> list[tuple[int, bytes]]:
    found, first = [], manifest.first_rows
    for row, (offset, size, label) in enumerate(open_index(folder, manifest).tolist()):
        tar = manifest.tars[int(np.searchsorted(first, row, side="right")) - 1]
        found.append((label, (folder / tar.name).read_bytes()[offset : offset + size]))
    return sorted(found)


def one_part(file: Path, out: Path, number: int) -> str | None:
    plan = make_plan(open_source(file), out, seed=1, samples_per_tar=3, size=None)
    manifest = make_set(plan, part=(number, 3))
    return manifest.digest if manifest else None


def test_parts_of_parquet_need_no_second_round(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write(file, rows(20), [0, 1] * 10)
    whole = complete(make_plan(open_source(file), tmp_path / "whole", seed=1, samples_per_tar=3, size=None)).digest
    assert [one_part(file, tmp_path / "out", number) for number in (2, 0, 1)] == [None, None, whole]
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")
    shutil.copytree(tmp_path / "out", tmp_path / "out.unshuffled")  # as a run leaves it that was killed at its end
    assert one_part(file, tmp_path / "out", 0) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "out", "whole"]


def test_parts_of_parquet_at_the_same_time_make_the_same_set(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write(file, rows(20), [0, 1] * 10)
    whole = complete(make_plan(open_source(file), tmp_path / "whole", seed=1, samples_per_tar=3, size=None)).digest
    for attempt in range(6):
        out = tmp_path / str(attempt)
        # One of them twice, as of a requeued task.
        digests = set(each_done(partial(one_part, file, out), [0, 1, 2, 1], 4))
        assert whole in digests
        assert digests <= {whole, None}
        assert snapshot(out) == snapshot(tmp_path / "whole")
        assert not out.with_name(f"{out.name}.unshuffled").exists()


def test_a_set_that_another_process_finishes_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other finishes, and removes the tars between, just before this one lists them."""
    write(tmp_path / "a.parquet", rows(20), [0, 1] * 10)
    plan = make_plan(open_source(tmp_path / "a.parquet"), tmp_path / "out", seed=1, samples_per_tar=3, size=None)

    def finish_first(folder: Path, workers: int) -> Source:
        monkeypatch.undo()
        make_set(plan)
        return open_tars(folder, workers=workers)

    monkeypatch.setattr("pipeline.shards.making.sequential.open_tars", finish_first)
    assert make_set(plan) == Manifest.load(tmp_path / "out")


@pytest.mark.parametrize("cut", [0, 10, -5, -100])
def test_a_damaged_file_is_named(tmp_path: Path, cut: int) -> None:
    write(tmp_path / "a.parquet", rows(7), [1] * 7)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:cut])
    with pytest.raises(ShardError, match=r"a\.parquet: not a sound Parquet file: "):
        open_source(tmp_path / "a.parquet")


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(7), [1] * 7)
    whole = bytearray((tmp_path / "a.parquet").read_bytes())
    whole[100:1500] = bytes(1400)
    (tmp_path / "a.parquet").write_bytes(whole)
    source = open_source(tmp_path / "a.parquet")
    with pytest.raises(ShardError, match=r"a\.parquet: row group 0: "):
        source.read(0)


def test_other_columns_are_named(tmp_path: Path) -> None:
    parquet.write_table(arrow.table({"img": [b""], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ShardError, match="got columns img, label, wanted image and label"):
        open_source(tmp_path / "a.parquet")


def test_no_labels_at_all_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(2), [-1, -1])
    with pytest.raises(ShardError, match="got no row with a label"):
        open_source(tmp_path / "a.parquet")


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(3), [2, 0, 2])
    table = parquet.read_table(tmp_path / "a.parquet").rename_columns(["photo", "person", "label"])
    parquet.write_table(table, tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet", options=Options(Columns("photo", "person")))
    assert source.labels.tolist() == [1, 0, 1]
    assert [source.read(i) for i in range(3)] == [noise(i) for i in range(3)]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary", "int32", "uint8"])
def test_labels_of_every_type_are_those_of_a_loop(tmp_path: Path, kind: str) -> None:
    chance = np.random.default_rng(0)
    numbers = [int(value) or None for value in chance.integers(0, 9, 40)]
    names = [number and f"name {number * 7 % 10}" for number in numbers]
    labels: list[Any] = list(numbers if "int" in kind else names)
    for number, part in enumerate((labels[:13], labels[13:])):
        column = arrow.array(part, "string" if kind == "dictionary" else kind)
        column = column.dictionary_encode() if kind == "dictionary" else column
        table = arrow.table({"image": rows(len(part), 20 * number), "label": column})
        parquet.write_table(table, tmp_path / f"{number}.parquet", row_group_size=5)
    source = open_source(tmp_path)
    wanted = [(row, label) for row, label in enumerate(labels) if label is not None]
    assert isinstance(source, ParquetSource)
    assert source.rows.tolist() == [row for row, _ in wanted]
    assert list(source.identities) == sorted({str(label) for _, label in wanted})
    assert [source.identities[label] for label in source.labels] == [str(label) for _, label in wanted]
    assert len(source.set_aside) == labels.count(None)


def test_labels_of_two_types_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(1), ["ann"])
    write(tmp_path / "b.parquet", rows(1), [0])
    with pytest.raises(ShardError, match=r"b\.parquet: label: got int64, wanted string as in a\.parquet"):
        open_source(tmp_path)


def test_labels_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(2), [1.0, 1.5])
    with pytest.raises(ShardError, match=r"a\.parquet: label: got double, wanted whole numbers or strings"):
        open_source(tmp_path)


# --- as the Hub and `save_to_disk` lay files out --------------------------------------------------------------------


def save(path: Path, images: Sequence[object], labels: Sequence[object]) -> None:
    """A file of `datasets.save_to_disk`: a stream of record batches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = arrow.table({"image": images, "label": labels})
    with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)


def found(source: Source) -> list[tuple[str, bytes]]:
    return [(source.identities[label], source.read(i)) for i, label in enumerate(source.labels.tolist())]


TRAIN = [("0", noise(0)), ("1", noise(1)), ("1", noise(2))]
TEST = [("0", noise(3)), ("1", noise(4))]
LAYOUTS = {
    "a folder": ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
    "a repository's root": ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    "plain names": ("faces_train.parquet", "faces_val.parquet"),
    "a saved dataset": ("train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow"),
}


@pytest.fixture(params=LAYOUTS)
def splits(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A folder with train and another split, and the other's name."""
    train, test = LAYOUTS[request.param]
    for name, first, labels in ((train, 0, [0, 1, 1]), (test, 3, [0, 1])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (save if name.endswith(".arrow") else write)(tmp_path / name, rows(len(labels), first), labels)
    if train.endswith(".arrow"):
        (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return tmp_path, "validation" if "val" in test else "test"


def test_several_splits_are_not_mixed_without_a_choice(splits: tuple[Path, str], tmp_path: Path) -> None:
    folder, other = splits
    known = ", ".join(sorted(["train", other]))
    for place, copies in ((folder, None), (f"file://{folder}", tmp_path / "copies")):
        with pytest.raises(ShardError, match=f"got splits {known}, wanted --split with those to use"):
            open_source(place, copies=copies)
        for split, truth in (("train", TRAIN), (other, TEST)):
            source = open_source(place, copies=copies, options=Options(choice=Choice(splits=(split,))))
            assert found(source) == truth
        both = open_source(place, copies=copies, options=Options(choice=Choice(splits=("train", other))))
        assert sorted(found(both)) == sorted(TRAIN + TEST)
        with pytest.raises(ShardError, match=f"got splits {known}, wanted extra"):
            open_source(place, copies=copies, options=Options(choice=Choice(splits=("extra",))))


def test_a_pattern_of_names_is_a_choice(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", rows(2), [0, 1])
    write(tmp_path / "train-00001-of-00002.parquet", rows(1, 2), [1])
    write(tmp_path / "test-00000-of-00001.parquet", rows(2, 3), [0, 1])
    assert found(open_source(tmp_path / "train-*.parquet")) == TRAIN
    assert found(open_source(f"file://{tmp_path}/te*", copies=tmp_path / "copies")) == TEST
    with pytest.raises(ShardError, match=r"got no file named x\*"):
        open_source(tmp_path / "x*")


def test_a_saved_dataset_is_read_in_batches_and_becomes_a_set(tmp_path: Path) -> None:
    save(tmp_path / "saved" / "data-00000-of-00002.arrow", rows(5), ["a", "b", "a", "b", "c"])
    save(tmp_path / "saved" / "data-00001-of-00002.arrow", rows(2, 5), ["c", "a"])
    source = open_source(tmp_path / "saved")
    assert found(source) == [(name, noise(i)) for i, name in enumerate("abab" + "cca")]
    manifest = make_set(make_plan(source, tmp_path / "out", seed=0, samples_per_tar=3, size=None))
    assert manifest is not None and manifest.samples == 7


def test_rows_may_hold_only_the_path_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(noise(0))
    paths: list[object] = [{"bytes": None, "path": "images/0.jpg"}, {"bytes": None, "path": "images/1.jpg"}]
    write(tmp_path / "a.parquet", paths, [0, 0])
    source = open_source(tmp_path)
    assert source.read(0) == noise(0)
    with pytest.raises(SetAsideError, match="no image bytes in the row, and its file: No such file"):
        source.read(1)


def test_whole_numbers_of_different_widths_are_one_type(tmp_path: Path) -> None:
    for number, kind in enumerate(("int64", "int32", "uint8")):
        table = arrow.table({"image": rows(2, 2 * number), "label": arrow.array([number, 7], kind)})
        parquet.write_table(table, tmp_path / f"{number}.parquet")
    source = open_source(tmp_path)
    assert [source.identities[label] for label in source.labels] == ["0", "7", "1", "7", "2", "7"]


def test_one_label_outside_the_names_costs_its_row_only(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(4), [0, 2, 3, 1], names=["ann", "bob", "cat"])
    source = open_source(tmp_path)
    assert [source.identities[label] for label in source.labels] == ["ann", "cat", "bob"]
    assert source.set_aside == [(f"{tmp_path.name}:2", "label: got 3, wanted less than 3, the class names", 1)]


def test_files_of_other_class_names_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(2), [0, 1], names=["ann", "bob"])
    write(tmp_path / "b.parquet", rows(2), [0, 1], names=["bob", "ann"])
    with pytest.raises(ShardError, match=r"b\.parquet: label: got other class names, wanted those of a\.parquet"):
        open_source(tmp_path)
