"""Decoding: equal to Pillow within JPEG tolerance, in order, one bad image costs one image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.reading.dali import Decoder, EncodedBatch

H, W = 112, 96


def smooth_jpeg(seed: int, height: int = H, width: int = W) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (7, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def batch(*images: np.ndarray, mirror: bool = False) -> EncodedBatch:
    return EncodedBatch(list(images), np.full(len(images), mirror))


def reference(encoded: np.ndarray) -> torch.Tensor:
    pixels = np.asarray(Image.open(io.BytesIO(encoded.tobytes())).convert("RGB"), dtype=np.float64)
    return torch.from_numpy((pixels - 127.5) / 128).permute(2, 0, 1)


@pytest.fixture
def decoder() -> Decoder:
    return Decoder(batch_size=4, height=H, width=W, device=torch.device("cpu"), threads=1)


def test_pixels_equal_pillow_within_decoder_tolerance(decoder: Decoder) -> None:
    image = smooth_jpeg(1)
    (decoded,) = decoder.decode([batch(image)])
    assert decoded.images.shape == (1, 3, H, W)
    assert decoded.images.dtype == torch.float32
    # two JPEG decoders may differ by a few levels of 255 in chroma upsampling
    assert (decoded.images[0].double() - reference(image)).abs().max() <= 4 / 128


def test_mirror_is_an_exact_left_right_flip(decoder: Decoder) -> None:
    image = smooth_jpeg(2)
    plain, mirrored = decoder.decode([batch(image), batch(image, mirror=True)])
    assert torch.equal(plain.images.flip(-1), mirrored.images)


def test_batches_keep_their_order_and_may_be_short(decoder: Decoder) -> None:
    images = [smooth_jpeg(seed) for seed in range(9)]
    batches = [batch(*images[0:4]), batch(*images[4:8]), batch(images[8])]
    decoded = torch.cat([b.images for b in decoder.decode(batches)])
    alone = torch.cat([next(iter(decoder.decode([batch(image)]))).images for image in images])
    assert torch.equal(decoded, alone)


BAD = {
    "garbage": np.frombuffer(b"not an image at all", np.uint8),
    "truncated": smooth_jpeg(3)[:300],
    "empty": np.zeros(0, np.uint8),
    "wrong size": smooth_jpeg(3, height=100),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("position", [0, 2])
def test_one_bad_image_costs_one_image(decoder: Decoder, kind: str, position: int) -> None:
    good = [smooth_jpeg(seed) for seed in range(12)]
    clean = list(decoder.decode([batch(*good[i : i + 4]) for i in (0, 4, 8)]))
    images = list(good)
    images[4 + position] = BAD[kind]
    decoded = list(decoder.decode([batch(*images[i : i + 4]) for i in (0, 4, 8)]))
    assert [b.bad for b in decoded] == [(), (position,), ()]
    for got, want in zip(decoded, clean, strict=True):
        for row in set(range(4)) - set(got.bad):
            assert torch.equal(got.images[row], want.images[row])
    assert not decoded[1].images[position].any()


def test_every_image_bad(decoder: Decoder) -> None:
    (decoded,) = decoder.decode([batch(*[BAD["garbage"]] * 3)])
    assert decoded.bad == (0, 1, 2)


def test_pixels_stay_what_they_are_while_later_batches_are_decoded(decoder: Decoder) -> None:
    batches = [batch(smooth_jpeg(seed)) for seed in range(12)]
    kept = list(decoder.decode(batches))
    for seed, decoded in enumerate(kept):
        assert (decoded.images[0].double() - reference(smooth_jpeg(seed))).abs().max() <= 4 / 128
