"""What is known of a sample besides image and label: from other tools' tars into a set, and through sets made of it."""

import json
import tarfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.format.fields import of_json, to_json
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources.detect import open_source
from pipeline.shards.sources.fitted import FittedSource
from pipeline.shards.views.hygiene import clean
from tests.shards import extracted, made, noise, write_tar_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@given(key=st.text(min_size=1), fields=st.dictionaries(st.text().filter("key".__ne__), VALUES, max_size=3))
def test_fields_are_read_back(key: str, fields: dict[str, object]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = to_json(key, fields)
    found = json.loads(text, parse_constant=refuse)
    assert found == of_json(text)
    assert found["key"] == key
    wanted = json.loads(json.dumps({**fields, "key": key}), parse_constant=lambda _: None)
    assert found == wanted


def test_what_is_no_object_has_no_fields() -> None:
    for text in (b"", b"[1]", b'{"key"', b"\xff", b"null"):
        assert of_json(text) == {}


def fields_in(folder: Path) -> list[dict[str, object]]:
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [json.loads(extracted(tar, member)) for member in tar if member.name.endswith(".json")]
    return sorted(found, key=lambda fields: str(fields["key"]))


def test_foreign_key_landmarks_and_quality_stay_with_the_sample(tmp_path: Path) -> None:
    """Through two shufflings and a change of size; a cleaned set names its samples by the foreign key."""
    wanted = [
        {"key": "m.0abc/7.jpg", "landmarks": [[1.5, 2], [3, 4]], "quality": 0.25},
        {"key": "m.0abc/9.jpg", "quality": None},
        {"key": "m.0xyz/1.jpg", "source": {"url": "http://host/1", "id": 12345678901234567890}},
    ]
    members: list[tuple[str, bytes]] = []
    for number, fields in enumerate(wanted):
        members += [
            (f"{number}.jpg", noise(number % 2)),
            (f"{number}.cls", b"3"),
            (f"{number}.json", json.dumps(fields).encode()),
        ]
    (tmp_path / "theirs").mkdir()
    write_tar_of(tmp_path / "theirs" / "a.tar", [*members, ("3.jpg", noise(3)), ("3.cls", b"4"), ("3.json", b"{}")])
    source = FittedSource(open_source(tmp_path / "theirs"), 12, 10, "stretch")
    made(make_plan(source, tmp_path / "ours", seed=1, samples_per_tar=2, size=(12, 10)))
    made(make_plan(open_source(tmp_path / "ours"), tmp_path / "again", seed=2, samples_per_tar=3, size=None))
    for folder in ("ours", "again"):
        assert fields_in(tmp_path / folder) == [{"key": "a.tar:3"}, *wanted]
    clean(tmp_path / "again", tmp_path / "clean")
    rejected = (tmp_path / "clean" / "rejected.tsv").read_text()
    assert any(f"{key}\ta copy within the identity" in rejected for key in ("m.0abc/7.jpg", "m.0xyz/1.jpg"))
