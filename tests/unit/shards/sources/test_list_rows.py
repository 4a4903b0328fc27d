"""Lists as other tools write them: MXNet's and InsightFace's .lst, and tables with a header."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources import Read
from pipeline.shards.sources.columns import Columns
from pipeline.shards.sources.detect import Options, open_source
from pipeline.shards.sources.list_rows import of_cell, to_cell
from tests.shards import contents, made, noise


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / f"my face {number}.jpg").write_bytes(noise(number))
    return tmp_path


def read(folder: Path, name: str, text: str, columns: Columns = Columns()) -> list[tuple[str, Read]]:  # noqa: B008
    """Identity and what is read of each sample of a list."""
    (folder / name).write_text(text, newline="")
    source = open_source(folder / name, options=Options(columns))
    samples = source.read_many(np.arange(len(source.labels)))
    return [(source.identities[label], one) for label, one in zip(source.labels, samples, strict=True)]


def test_a_list_of_im2rec_has_its_label_before_the_path(images: Path) -> None:
    text = "0\t3.000000\tmy face 0.jpg\n7\t10.000000\tmy face 1.jpg\n2\t3.000000\t0.5\t7\tmy face 2.jpg\n"
    assert read(images, "faces.lst", text) == [
        ("3", Read("my face 0.jpg", noise(0))),
        ("10", Read("my face 1.jpg", noise(1))),
        ("3", Read("my face 2.jpg", noise(2), {"labels": [0.5, 7.0]})),
    ]


def test_a_list_of_insightface_has_its_path_before_the_label(images: Path) -> None:
    """Its landmarks are first all x, then all y, as InsightFace's face_preprocess.py reads them."""
    points = "1 2 3 4 5 11 12 13 14 15.5".replace(" ", "\t")
    text = f"1\tmy face 0.jpg\t0000045\n1\tmy face 1.jpg\t7\n0\tmy face 2.jpg\t7\t10\t20\t110\t130\t{points}\n"
    found = read(images, "FACES.LST", text)
    assert [identity for identity, _ in found] == ["0000045", "7", "7"]
    assert [one.image for _, one in found] == [noise(n) for n in range(3)]
    assert found[2][1].fields == {
        "box": [10, 20, 110, 130],
        "landmarks": [[1, 11], [2, 12], [3, 13], [4, 14], [5, 15.5]],
    }


def test_a_box_may_come_without_landmarks(images: Path) -> None:
    ((_, one),) = read(images, "faces.lst", "0\tmy face 2.jpg\t7\t10\t20\t110\t130\n")
    assert one.fields == {"box": [10, 20, 110, 130]}


@pytest.mark.parametrize("value", ["ann", "7", "007", "[1]", "null", 'a "b"', 7, 0.5, [1, 2.5], None, True, ""])
def test_a_cell_is_read_as_the_value_that_was_written(value: object) -> None:
    assert of_cell(to_cell(value)) == value


def test_a_packing_list_may_have_two_columns(images: Path) -> None:
    assert read(images, "faces.lst", "my face 0.jpg\tann\n") == [("ann", Read("my face 0.jpg", noise(0)))]


TABLE = (
    "{mark}Person{d} path{d}quality{d}landmarks{d}note{end}"
    "{q}Lee, Ann{q}{d}my face 0.jpg{d}0.25{d}{q}[[1, 2.5], [3, 4]]{q}{d}{end}"
    "bob{d}{q}my face 1.jpg{q}{d}{d}{d}007{end}"
)


@pytest.mark.parametrize(("name", "d"), [("a.csv", ","), ("a.CSV", ";"), ("a.csv", "\t"), ("a.tsv", "\t"), ("a", "\t")])
@pytest.mark.parametrize(("end", "mark"), [("\n", ""), ("\r\n", "\ufeff")])
def test_a_table_has_a_header(images: Path, name: str, d: str, end: str, mark: str) -> None:
    assert read(images, name, TABLE.format(d=d, end=end, mark=mark, q='"')) == [
        ("Lee, Ann", Read("my face 0.jpg", noise(0), {"quality": 0.25, "landmarks": [[1, 2.5], [3, 4]]})),
        ("bob", Read("my face 1.jpg", noise(1), {"note": "007"})),
    ]


def test_a_blank_may_follow_a_delimiter(images: Path) -> None:
    ((identity, _),) = read(images, "a.csv", 'path, label\nmy face 0.jpg, "Lee, Ann"\n')
    assert identity == "Lee, Ann"


def test_columns_may_be_named(images: Path) -> None:
    text = "label,who,shot,path\n1,ann,my face 0.jpg,x\n1,bob,my face 1.jpg,y\n"
    found = read(images, "a.csv", text, Columns("shot", "who"))
    assert [(identity, one.key, one.fields) for identity, one in found] == [
        ("ann", "my face 0.jpg", {"label": 1, "path": "x"}),
        ("bob", "my face 1.jpg", {"label": 1, "path": "y"}),
    ]
    ((_, one),) = read(images, "b.csv", "path,label,image\nx,ann,my face 0.jpg\n")
    assert (one.key, one.fields) == ("my face 0.jpg", {"path": "x"}), "an image comes before a path"
    with pytest.raises(ShardError, match=r"a\.csv: got columns label, who, shot, path, wanted image and pose \(--im"):
        read(images, "a.csv", text, Columns(label="pose"))
    with pytest.raises(ShardError, match=r"a\.csv: got columns my face 0\.jpg, ann, wanted image and label"):
        read(images, "a.csv", "my face 0.jpg,ann\n")


def test_a_table_becomes_shards_with_its_fields(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        "path,identity,key,quality",
        "my face 0.jpg,ann ,m.0a,0.5",
        "my face 1.jpg,,m.0b,1",
        ",",
        "my face 2.jpg,bob",
    ]
    (images / "a.csv").write_text("\n".join(rows))
    with caplog.at_level(logging.WARNING):
        source = open_source(images / "a.csv")
    assert "1 names are kept without blanks" in caplog.text
    made(make_plan(source, images / "out", seed=0, samples_per_tar=9, size=None, max_rejected=1))
    assert (images / "out" / "rejected.tsv").read_text().splitlines()[1:] == [
        "a.csv:3\tno identity: wanted path, tab, identity"
    ]
    again = open_source(images / "out")
    assert contents(again) == {"m.0a": ("ann", noise(0)), "my face 2.jpg": ("bob", noise(2))}
    fields = {one.key: one.fields for one in again.read_many(np.arange(2))}
    assert fields == {"m.0a": {"key": "m.0a", "quality": 0.5}, "my face 2.jpg": {"key": "my face 2.jpg"}}
    digest = open_source(images / "a.csv").digest()
    (images / "a.csv").write_text("\n".join(rows).replace("0.5", "0.6"))
    assert open_source(images / "a.csv").digest() != digest


def test_a_broken_table_is_named(images: Path) -> None:
    (images / "a.csv").write_text(f"path,label\nx,{'1' * 200_000}\n")
    with pytest.raises(ShardError, match=r"a\.csv:2: not a table \(field larger than field limit"):
        open_source(images / "a.csv")


@pytest.mark.parametrize("row", ['"my face 0.jpg,ann', 'my face 0.jpg,"ann', '"my" face 0.jpg,ann'])
@pytest.mark.parametrize("last", ["my face 1.jpg,bob", 'my" face 1.jpg,bob'])
def test_a_quotation_mark_swallows_no_lines(images: Path, row: str, last: str) -> None:
    (images / "a.csv").write_text(f"path,label\nmy face 2.jpg,ann\n{row}\n{last}\n")
    with pytest.raises(ShardError, match=r"a\.csv:3: not a table"):
        open_source(images / "a.csv")


def test_a_table_at_a_url_is_read(images: Path) -> None:
    (images / "a.csv").write_text(f"path,label,box\nmy face 0.jpg,ann,{json.dumps('[1, 2]')}\n")
    (one,) = open_source(f"file://{images}/a.csv").read_many(np.arange(1))
    assert one == Read("my face 0.jpg", noise(0), {"box": [1, 2]})
