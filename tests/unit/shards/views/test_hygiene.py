"""Cleaning: what is wrong with an image, which copies go, and that the set itself stays as it is."""

import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.shards.checking.verify import verify
from pipeline.shards.format.index import open_index
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.views import hygiene
from pipeline.shards.views.hygiene import FACTS, NOT_HASHED, clean, judge, look_at


def face(number: int, tint: tuple[int, int, int] = (60, 30, 0), grey: bool = False, size: int = 24) -> bytes:
    """A noisy picture, redder than blue."""
    noise = np.random.default_rng(number)
    pixels = noise.integers(0, 150, (size, size, 1)) + noise.integers(0, 40, (size, size, 3)) + np.array(tint)
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    (picture.convert("L").convert("RGB") if grey else picture).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def broken_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), 50).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[data.index(b"IDAT") + 6] ^= 0xFF
    return bytes(data)


def test_grey_and_swapped_pictures_are_told_from_others() -> None:
    pictures = (face(1), face(1, grey=True), face(1, tint=(0, 30, 60)))
    normal, grey, blue = (look_at(picture, near=False) for picture in pictures)
    assert [facts[1] for facts in (normal, grey, blue)] == [True] * 3
    assert normal[2] > hygiene.GREY_BELOW > grey[2]
    assert normal[3] < hygiene.SWAPPED_ABOVE < blue[3]
    assert look_at(broken_png(), near=False)[1] is False


def cut(image: bytes, share: float, end: bytes = b"\xff\xd9") -> bytes:
    """What is left of a JPEG that was cut somewhere in its pixels and closed by a tool."""
    start = image.index(b"\xff\xda")
    return image[: start + int((len(image) - start) * share)] + end


def saved_again(image: bytes, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(image)) as opened:
        opened.save(buffer, kind, **options)
    return buffer.getvalue()


def portrait(number: int) -> bytes:
    return saved_again(face(number, size=96), quality=95)


def test_what_a_cut_file_lacks_is_measured() -> None:
    half = cut(portrait(1), 0.5)
    for image in (half, saved_again(half, quality=90), saved_again(half, quality=30), saved_again(half, "PNG")):
        assert 0.3 < look_at(image, near=False)[4] < 0.7
    assert look_at(cut(portrait(1), 0.9), near=False)[4] < hygiene.MISSING_ABOVE
    assert look_at(cut(portrait(1), 0.02), near=False)[4] > 0.8
    for image in (portrait(1), face(1, grey=True), saved_again(cut(portrait(1), 1.0, b"")), broken_png()):
        assert look_at(image, near=False)[4] == 0


def slow_judge(digests: list[bytes], labels: list[int]) -> list[int]:
    people = defaultdict(set)
    for digest, label in zip(digests, labels, strict=True):
        people[digest].add(label)
    seen, verdicts = set(), []
    for digest, label in zip(digests, labels, strict=True):
        if len(people[digest]) > 1:
            verdicts.append(hygiene.TWO_PEOPLE)
        else:
            verdicts.append(hygiene.COPY if (digest, label) in seen else hygiene.KEPT)
        seen.add((digest, label))
    return verdicts


@given(samples=st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(0, 3)), max_size=25))
@settings(deadline=None, max_examples=200)
def test_copies_are_those_of_a_slow_loop(samples: list[tuple[bytes, int]]) -> None:
    digests, labels = [digest for digest, _ in samples], [label for _, label in samples]
    facts = np.array([(digest, True, 99.0, -30.0, 0, NOT_HASHED) for digest in digests], FACTS)
    assert judge(facts, np.array(labels, np.int64)).tolist() == slow_judge(digests, labels)


def test_the_gravest_reason_is_given() -> None:
    some = [(b"a", False, 0, 99, 1), (b"b", True, 0, 99, 0), (b"b", True, 0, 99, 0), (b"c", True, 9, 99, 0)]
    facts = np.array([(*fact, NOT_HASHED) for fact in [*some, (b"b", True, 0, 99, 0.5)]], FACTS)
    assert judge(facts, np.array([0, 1, 1, 1, 2])).tolist() == [
        hygiene.UNREADABLE,
        hygiene.TWO_PEOPLE,
        hygiene.TWO_PEOPLE,
        hygiene.SWAPPED,
        hygiene.CUT,
    ]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    images = {
        "ann/1.jpg": face(1),
        "ann/2.jpg": face(2),
        "ann/2 again.jpg": face(2),
        "bob/1.jpg": face(3),
        "bob/2.jpg": face(4),
        "bob/broken.png": broken_png(),
        "cat/grey.jpg": face(5, grey=True),
        "cat/blue.jpg": face(6, tint=(0, 30, 60)),
        "cat/noise.jpg": face(7),
        "dan/noise.jpg": face(7),
        "dan/1.jpg": face(8),
    }
    for name, data in images.items():
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / name).write_bytes(data)
    source = scan_folder(tmp_path / "faces")
    make_shards(make_plan(source, tmp_path / "set", seed=0, samples_per_tar=4, size=None))
    return tmp_path / "set"


def rejected(folder: Path) -> dict[str, str]:
    return dict(line.split("\t") for line in (folder / "rejected.tsv").read_text().splitlines()[1:])


ALWAYS = {
    "bob/broken.png": "does not decode",
    "cat/noise.jpg": "the same image under another identity",
    "dan/noise.jpg": "the same image under another identity",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_clean_set_leaves_out_what_is_wrong_and_names_it(shards: Path, tmp_path: Path, workers: int) -> None:
    before = {path: path.read_bytes() for path in shards.iterdir()}
    cleaned = clean(shards, tmp_path / "clean", workers=workers)
    found = rejected(tmp_path / "clean")
    copies = {name for name, reason in found.items() if reason == "a copy within the identity"}
    assert len(copies) == 1
    assert copies < {"ann/2.jpg", "ann/2 again.jpg"}
    assert {name: reason for name, reason in found.items() if name not in copies} == ALWAYS
    assert cleaned.only_counted == {"grey": 1, "bluer than red: channels swapped?": 1}
    assert sum(cleaned.left_out.values()) == cleaned.manifest.set_aside == 4
    assert (cleaned.manifest.samples, cleaned.manifest.identities) == (7, 4)
    assert verify(tmp_path / "clean", decode_every=1) == []
    assert {path: path.read_bytes() for path in shards.iterdir()} == before


def test_what_keeps_a_clean_set_from_being_written_is_said_before_any_image_is_read(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.shards.views.hygiene.look_at", lambda *_: pytest.fail("an image was looked at"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ShardError, match="mine: is not empty, wanted a new folder"):
        clean(shards, tmp_path / "mine")
    with pytest.raises(ShardError, match=r"holds other shards \(source: got folder, wanted clean\)"):
        clean(shards, shards)
    (shards / "identities.txt").write_text("someone\n")
    with pytest.raises(ShardError, match=r"identities\.txt: got other names, wanted those of"):
        clean(shards, tmp_path / "out")


def test_grey_swapped_and_small_identities_go_when_asked(shards: Path, tmp_path: Path) -> None:
    cleaned = clean(shards, tmp_path / "clean", drop_grey=True, drop_swapped=True, min_images=2)
    found = rejected(tmp_path / "clean")
    assert found["cat/grey.jpg"] == "grey"
    assert found["cat/blue.jpg"] == "bluer than red: channels swapped?"
    assert found["dan/1.jpg"] == "identity of too few images"
    assert cleaned.only_counted == {}
    assert (tmp_path / "clean" / "identities.txt").read_text() == "ann\nbob\n"
    labels = open_index(tmp_path / "clean", Manifest.load(tmp_path / "clean"))["label"]
    assert np.bincount(labels).tolist() == [2, 2]
