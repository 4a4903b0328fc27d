"""The parts of sharding alone: image headers, the shuffle and its cuts, tar bytes, whole files."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import files
from pipeline.files import NotWrittenError, write_file, written_whole
from pipeline.shards.format.tars import TarStream, member_headers
from pipeline.shards.images import SetAsideError, read_header
from pipeline.shards.making.plan import cut, permutation
from tests.shards import extracted


def encoded(height: int, width: int, kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), 77).save(buffer, kind, **options)
    return buffer.getvalue()


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    kind=st.sampled_from(["JPEG", "PNG"]),
    mode=st.sampled_from(["RGB", "L"]),
    progressive=st.booleans(),
    comment=st.binary(max_size=70),
)
@settings(max_examples=60, deadline=None)
def test_a_header_says_what_pillow_says(
    height: int, width: int, kind: str, mode: str, progressive: bool, comment: bytes
) -> None:
    options = {"progressive": progressive, "comment": comment} if kind == "JPEG" else {}
    data = encoded(height, width, kind, mode, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == kind
        assert read_header(data) == ("jpg" if kind == "JPEG" else "png", image.height, image.width)


@given(data=st.binary(max_size=60), start=st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_header_or_set_aside(data: bytes, start: bytes) -> None:
    try:
        extension, height, width = read_header(start + data)
    except SetAsideError:
        return
    assert extension in {"jpg", "png"}
    assert 0 <= height < 2**32
    assert 0 <= width < 2**32


@given(at=st.integers(0, 700), kind=st.sampled_from(["JPEG", "PNG"]))
@settings(max_examples=60, deadline=None)
def test_an_image_cut_anywhere_is_set_aside(at: int, kind: str) -> None:
    data = encoded(16, 16, kind)
    with pytest.raises(SetAsideError, match=r"truncated|empty file|not a JPEG or PNG|broken"):
        read_header(data[: min(at, len(data) - 1)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"GIF89a", "not a JPEG or PNG"),
        (encoded(8, 8)[:-2], "truncated: the JPEG has no end marker"),
        (encoded(8, 8, "PNG")[:-1], "truncated: the PNG has no IEND chunk"),
        (encoded(8, 8)[:10], "truncated: the header is cut"),
        (encoded(8, 8, mode="CMYK"), "JPEG of 4 channels: wanted 1 or 3, or --fit, which converts it"),
        (b"\xff\xd8\x00", "broken JPEG: got byte 0x00 at 2, wanted a marker"),
        (encoded(8, 8).replace(b"\x00\x11\x08\x00\x08", b"\x00\x11\x08\x00\x00"), "image of 0x8 pixels"),
        (b"\xff\xd8\xff\xc3", "JPEG marker 0xc3: wanted a baseline or progressive frame"),
    ],
)
def test_a_bad_image_has_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(SetAsideError) as caught:
        read_header(data)
    assert str(caught.value) == reason


def test_a_padded_jpeg_is_whole() -> None:
    assert read_header(encoded(9, 5) + bytes(100)) == ("jpg", 9, 5)


@given(samples=st.integers(0, 3000), seed=st.integers(-(2**63), 2**64))
@settings(deadline=None)
def test_the_permutation_takes_each_sample_once(samples: int, seed: int) -> None:
    order = permutation(samples, seed)
    assert sorted(order.tolist()) == list(range(samples))
    np.testing.assert_array_equal(order, permutation(samples, seed))


def slow_permutation(samples: int, seed: int) -> list[int]:
    """The same by unbounded Python integers."""

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    return sorted(range(samples), key=lambda i: mix((mix(seed) + i * 0x9E3779B97F4A7C15) % 2**64))


def test_the_permutation_is_pinned() -> None:
    assert permutation(8, 0).tolist() == slow_permutation(8, 0)
    assert permutation(1000, 12345).tolist() == slow_permutation(1000, 12345)
    assert permutation(8, 0).tolist() != permutation(8, 1).tolist()


def test_the_permutation_mixes_the_whole_set() -> None:
    order = permutation(20_000, 3)
    # Neighbours of a uniform permutation are a third of the set apart on average.
    assert np.abs(np.diff(order)).mean() == pytest.approx(20_000 / 3, rel=0.03)
    assert abs(np.corrcoef(np.arange(20_000), order)[0, 1]) < 0.03


@given(samples=st.integers(0, 10_000), per_tar=st.integers(1, 500))
@settings(deadline=None)
def test_cuts_cover_everything_in_nearly_equal_tars(samples: int, per_tar: int) -> None:
    bounds = cut(samples, per_tar)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, samples)
    assert len(sizes) == -(-samples // per_tar)
    if samples:
        assert sizes.max() - sizes.min() <= 1
        assert 1 <= sizes.min() <= sizes.max() <= per_tar


MEMBERS = st.lists(
    st.tuples(st.text("0123456789.jpgcls", min_size=1, max_size=100), st.integers(0, 8 * 2**30 - 1)), max_size=9
)


@given(members=MEMBERS)
@settings(deadline=None)
def test_member_headers_are_those_of_tarfile(members: list[tuple[str, int]]) -> None:
    names = [name.encode() for name, _ in members]
    headers = member_headers(names, np.array([size for _, size in members], np.int64))
    assert headers.shape == (len(members), 512)
    for (name, size), header in zip(members, headers, strict=True):
        parsed = tarfile.TarInfo.frombuf(header.tobytes(), "utf-8", "strict")  # checks the sum
        assert (parsed.name, parsed.size, parsed.mtime, parsed.mode) == (name, size, 0, 0o644)
        assert (parsed.uid, parsed.gid, parsed.uname, parsed.gname, parsed.isreg()) == (0, 0, "", "", True)
        # Up to the checksum, which differs where tarfile leaves a regular file's device numbers empty.
        assert header[:148].tobytes() == parsed.tobuf(tarfile.USTAR_FORMAT)[:148]


@given(batches=st.lists(st.lists(st.binary(max_size=1500), min_size=1, max_size=8), max_size=6))
@settings(deadline=None)
def test_a_tar_stream_is_what_tarfile_writes(batches: list[list[bytes]]) -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    stream = TarStream(ours)
    with tarfile.open(fileobj=theirs, mode="w") as tar:
        for payload in (payload for batch in batches for payload in batch):
            info = tarfile.TarInfo("a.jpg")
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    for batch in batches:
        offsets = stream.add(["a.jpg"] * len(batch), batch)
        written = ours.getvalue()
        assert stream.written == len(written)
        assert [written[o : o + len(p)] for o, p in zip(offsets, batch, strict=True)] == batch
    assert stream.close() == hashlib.sha256(ours.getvalue()).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(ours.getvalue())) as tar:
        assert [extracted(tar, member) for member in tar] == [p for batch in batches for p in batch]
    assert len(ours.getvalue()) == len(theirs.getvalue())


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_file(path, b"one")

    def half() -> None:
        with written_whole(path) as file:
            file.write(b"tw")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_bytes() == b"one"
    write_file(path, b"three")
    assert path.read_bytes() == b"three"
    assert list(tmp_path.iterdir()) == [path]


def test_short_writes_are_completed() -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data[:3]))

    file = Slow()
    files.write_all(file, b"0123456789")
    assert file.getvalue() == b"0123456789"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotWrittenError, match=r"nowhere/a: not written: No such file or directory"):
        write_file(tmp_path / "nowhere" / "a", b"")
