"""One decoder for all stages: DALI's pixels in every format, and every fault of Pillow's a sample set aside."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.reading.dali import Decoder, EncodedBatch
from pipeline.shards.decode import decoded
from pipeline.shards.images import SetAsideError, read_header
from pipeline.shards.sources.fitted import fit
from tests.shards import noise

HEIGHT, WIDTH = 24, 20
Pixels = NDArray[np.uint8]


def smooth(seed: int) -> Pixels:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(pixels: Pixels, bits: int, interlaced: bool = False, before: bytes = b"") -> bytes:
    """Grey or RGB, of 8 or 16 bits, plain or in Adam7's seven passes (RFC 2083): Pillow writes neither of the two."""
    height, width, channels = pixels.shape
    levels = pixels.astype(np.uint16) * 257 if bits == 16 else pixels
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    lines = b""
    for y, x, down, right in passes if interlaced else [(0, 0, 1, 1)]:
        part = levels[y::down, x::right]
        lines += b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in part if row.size)
    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 3: 2}[channels], 0, 0, interlaced)
    data = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def with_alpha(image: Image.Image, seed: int) -> Image.Image:
    image = image.copy()
    alpha = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    image.putalpha(Image.fromarray(alpha))
    return image


def exif(tag: int) -> Image.Exif:
    found = Image.Exif()
    found[0x112] = tag
    return found


def samples(seed: int, tag: int, quality: int) -> dict[str, bytes]:
    pixels = smooth(seed)
    image, grey = Image.fromarray(pixels), smooth(seed)[:, :, :1]
    return {
        "JPEG": encode(image, "JPEG", quality=quality),
        "4:4:4": encode(image, "JPEG", quality=quality, subsampling=0),
        "4:2:2": encode(image, "JPEG", quality=quality, subsampling=1),
        "progressive": encode(image, "JPEG", quality=quality, progressive=True),
        "grey JPEG": encode(image.convert("L"), "JPEG", quality=quality),
        "CMYK": encode(image.convert("CMYK"), "JPEG", quality=quality),
        "EXIF": encode(image, "JPEG", quality=quality, exif=exif(tag)),
        "PNG": encode(image, "PNG"),
        "palette": encode(image.quantize(17), "PNG"),
        "palette with transparency": encode(image.quantize(17), "PNG", transparency=3),
        "two levels": encode(image.convert("1"), "PNG"),
        "alpha": encode(with_alpha(image, seed), "PNG"),
        "grey alpha": encode(with_alpha(image.convert("L"), seed), "PNG"),
        "16 bit": png(pixels, 16),
        "16 bit grey": png(grey, 16),
        "interlaced": png(pixels, 8, interlaced=True),
        "interlaced 16 bit grey": png(grey, 16, interlaced=True),
    }


def by_dali(images: list[bytes]) -> list[Pixels]:
    batch = EncodedBatch([np.frombuffer(image, np.uint8) for image in images])
    (found,) = Decoder(len(images), HEIGHT, WIDTH, torch.device("cpu")).decode([batch])
    assert found.bad == ()
    levels = (found.images * 128 + 127.5).round().clip(0, 255).to(torch.uint8)
    return [image.permute(1, 2, 0).numpy() for image in levels]


@given(seed=st.integers(0, 2**32 - 1), tag=st.integers(1, 8), quality=st.integers(30, 100))
@settings(deadline=None, max_examples=8)
def test_every_format_is_what_dali_decodes_within_two_levels(seed: int, tag: int, quality: int) -> None:
    encoded = samples(seed, tag, quality)
    for (name, data), theirs in zip(encoded.items(), by_dali(list(encoded.values())), strict=True):
        ours = np.asarray(decoded(data).convert("RGB"), int)
        assert ours.shape == theirs.shape, name
        assert np.abs(ours - theirs).max() <= 2, name


@pytest.mark.parametrize("interlaced", [False, True])
def test_sixteen_bits_of_grey_are_scaled(interlaced: bool) -> None:
    grey = smooth(1)[:, :, :1]
    data = png(grey, 16, interlaced)
    np.testing.assert_array_equal(np.asarray(decoded(data)), grey[:, :, 0])
    with Image.open(io.BytesIO(fit(data, HEIGHT * 2, WIDTH * 2, "stretch"))) as fitted:
        assert np.asarray(fitted, float).mean() == pytest.approx(grey.mean(), abs=3)


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_photograph_is_turned_by_its_tag_and_a_crop_is_not(tag: int) -> None:
    scene = Image.fromarray(smooth(2))
    # How a camera stores the scene for each tag: the inverse of what the tag asks for.
    ways = Image.Transpose
    stored = {
        **{1: None, 2: ways.FLIP_LEFT_RIGHT, 3: ways.ROTATE_180, 4: ways.FLIP_TOP_BOTTOM},
        **{5: ways.TRANSPOSE, 6: ways.ROTATE_90, 7: ways.TRANSVERSE, 8: ways.ROTATE_270},
    }[tag]
    image = scene if stored is None else scene.transpose(stored)
    data = encode(image, "JPEG", quality=100, subsampling=0, exif=exif(tag))
    assert np.abs(np.asarray(decoded(data), int) - np.asarray(image)).max() <= 4
    assert np.abs(np.asarray(decoded(data, upright=True), int) - np.asarray(scene)).max() <= 4
    with Image.open(io.BytesIO(fit(data, HEIGHT * 2, WIDTH * 2, "stretch"))) as fitted:
        large = np.asarray(scene.resize((WIDTH * 2, HEIGHT * 2), Image.Resampling.LANCZOS), int)
        assert np.abs(np.asarray(fitted, int) - large).mean() < 4
        assert 0x112 not in fitted.getexif()


LONG_TEXT = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20)))
HUGE = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        noise(1)[:300],
        noise(1, "PNG")[:-30],
        png(smooth(0), 8, before=LONG_TEXT),
        png(smooth(0), 8)[:50],
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", HUGE) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"") + chunk(b"IEND", b""),
    ],
)
def test_whatever_does_not_decode_is_set_aside(data: bytes) -> None:
    with pytest.raises(SetAsideError, match=r"^does not decode: .") as found:
        decoded(data)
    assert "object at 0x" not in str(found.value), "the reason must be the same in every run"


@given(place=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]))
@settings(deadline=None, max_examples=150)
def test_a_changed_byte_decodes_or_is_set_aside(place: int, value: int, kind: str) -> None:
    data = bytearray(noise(3, kind))
    data[place % len(data)] = value
    try:
        decoded(bytes(data))
        read_header(bytes(data))
    except SetAsideError:
        pass
