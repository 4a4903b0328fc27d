"""Images of another size, made to fit."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.shards import decode
from pipeline.shards.images import SetAsideError, read_header
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import make_plan
from pipeline.shards.sources.detect import open_source
from pipeline.shards.sources.fitted import DecodedSource, FittedSource, fit
from tests.encodings import HEIC, ramps
from tests.shards import contents, made, noise, rejected

pytest.importorskip("pi_heif")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(4):
        (tmp_path / f"my face {number}.jpg").write_bytes(noise(number))
    return tmp_path


def half_and_half(height: int, width: int, mode: str = "RGB") -> bytes:
    """Black above, white below."""
    picture = Image.new(mode, (width, height))
    picture.paste(Image.new(mode, (width, height - height // 2), "white"), (0, height // 2))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("way", ["stretch", "crop"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_is_stretched_or_cropped(way: str, mode: str) -> None:
    with Image.open(io.BytesIO(fit(half_and_half(64, 32, mode), 16, 16, way))) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (16, 16), mode)
        rows = np.asarray(image.convert("L"), float).mean(1)
    assert np.sum(rows > 128) == 8
    assert rows[0] < 10
    assert rows[-1] > 245


ENCODINGS: dict[str, tuple[str, dict[str, object]]] = {
    "WebP": ("WEBP", {"lossless": True}),
    "BMP": ("BMP", {}),
    "TIFF": ("TIFF", {"compression": "tiff_lzw"}),
    "CMYK": ("JPEG", {"quality": 98, "subsampling": 0}),
    "CMYK TIFF": ("TIFF", {}),
}


def other_formats() -> dict[str, bytes]:
    """Name -> `ramps(24, 20)`, as sources hold images that shards do not."""
    found = {"HEIC": HEIC}
    for name, (kind, options) in ENCODINGS.items():
        image, buffer = Image.fromarray(ramps(24, 20)), io.BytesIO()
        (image.convert("CMYK") if "CMYK" in name else image).save(buffer, kind, **options)
        found[name] = buffer.getvalue()
    return found


def test_other_formats_become_jpeg(tmp_path: Path) -> None:
    """In identity folders; without --fit each says what it is."""
    formats = other_formats()
    reasons = {
        name: f"{name.removeprefix('CMYK ')}: wanted JPEG or PNG, or --fit, which converts it" for name in formats
    }
    reasons["CMYK"] = "JPEG of 4 channels: wanted 1 or 3, or --fit, which converts it"
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    suffixes = {"HEIC": "heic", "WebP": "webp", "BMP": "bmp", "TIFF": "tif", "CMYK": "JPG", "CMYK TIFF": "tiff"}
    for name, data in formats.items():
        (tmp_path / "faces" / "ann" / f"{name}.{suffixes[name]}").write_bytes(data)
        with pytest.raises(SetAsideError) as refused:
            read_header(data)
        assert str(refused.value) == reasons[name]
    source = open_source(tmp_path / "faces")
    assert not source.set_aside
    for size in ((24, 20), (48, 40)):
        fitted = FittedSource(source, *size, "stretch")
        manifest = made(make_plan(fitted, tmp_path / str(size), seed=0, samples_per_tar=9, size=size))
        assert (manifest.samples, manifest.set_aside) == (6, 0)
        wanted = np.asarray(Image.fromarray(ramps(24, 20)).resize(size[::-1], Image.Resampling.LANCZOS), int)
        for key, (_, data) in contents(open_source(tmp_path / str(size))).items():
            with Image.open(io.BytesIO(data)) as image:
                assert (image.format, image.mode) == ("JPEG", "RGB")
                assert np.abs(np.asarray(image, int) - wanted).mean() < 4, key


def test_the_reason_of_a_damaged_heic_is_one_line() -> None:
    data = bytearray(HEIC)
    data[HEIC.index(b"iloc") + 16] ^= 0x40  # the size of an item's place, so that the item ends behind the file
    with pytest.raises(SetAsideError, match=r"^does not decode: [^\n]*iloc[^\n]*\Z"):
        decode.decoded(bytes(data))


def test_without_its_reader_heic_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(decode, "import_module", absent)
    decode.register_heif.cache_clear()
    with pytest.raises(SetAsideError, match=r"HEIC needs pi-heif: pip install -e '.*\[heic\]' \(pi_heif\)"):
        decode.decoded(HEIC)


def test_cropping_keeps_the_middle_and_the_proportions() -> None:
    wide = Image.new("L", (40, 10))
    wide.paste(255, (15, 0, 25, 10))
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    with Image.open(io.BytesIO(fit(buffer.getvalue(), 10, 10, "crop"))) as image:
        assert np.asarray(image).min() > 200
    for way in ("crop", "stretch"):
        with Image.open(io.BytesIO(fit(buffer.getvalue(), 10, 20, way))) as image:
            assert image.size == (20, 10)
    with Image.open(io.BytesIO(fit(buffer.getvalue(), 10, 10, "stretch"))) as image:
        assert np.asarray(image, float).mean() == pytest.approx(255 / 4, abs=6)


def test_only_images_of_another_size_are_touched(images: Path) -> None:
    (images / "large.png").write_bytes(half_and_half(64, 32))
    (images / "list.txt").write_text("my face 0.jpg 1\nlarge.png 1\n")
    source = open_source(images / "list.txt")
    fitted = FittedSource(source, 8, 8, "crop")
    assert fitted.read(0) == noise(0)
    assert fitted.read(1) != source.read(1)
    manifest = make_shards(make_plan(fitted, images / "out", seed=0, samples_per_tar=9, size=(8, 8)))
    assert manifest is not None
    assert (manifest.samples, manifest.made.source) == (2, "list, crop to 8x8")
    assert len({fitted.digest(), source.digest(), FittedSource(source, 8, 8, "stretch").digest()}) == 3


def test_every_image_is_decoded_on_request(images: Path) -> None:
    data = bytearray(half_and_half(8, 8))
    data[data.index(b"IDAT") + 6] ^= 0xFF
    (images / "broken.png").write_bytes(data)
    (images / "list.txt").write_text("my face 0.jpg 1\nbroken.png 1\ngone.jpg 1\n")
    source = open_source(images / "list.txt")
    manifests = [
        made(make_plan(one, images / name, seed=0, samples_per_tar=9, size=(8, 8)))
        for name, one in (("headers", source), ("pixels", DecodedSource(source)))
    ]
    assert [manifest.samples for manifest in manifests] == [2, 1]
    assert manifests[1].made.source == "list, decoded"
    reasons = {path: reason.split(": ")[0] for path, reason in rejected(images / "pixels").items()}
    assert reasons == {"broken.png": "does not decode", "gone.jpg": "unreadable"}


def test_an_image_that_does_not_decode_is_set_aside() -> None:
    data = bytearray(half_and_half(64, 32))
    data[data.index(b"IDAT") + 6] ^= 0xFF
    with pytest.raises(SetAsideError, match="does not decode"):
        fit(bytes(data), 8, 8, "crop")
