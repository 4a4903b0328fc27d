"""Crops of the other published size: which are fitted, that every point gets its place, and what is said."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.reading.crops import Crop, crop_for
from pipeline.reading.dali import Decoder
from pipeline.reading.images import decode_images
from pipeline.shards.alignment.similarity import crop, reference_points

WIDE, NARROW = (112, 112), (112, 96)


def encoded(height: int, width: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return np.frombuffer(stream.getvalue(), np.uint8)


def test_a_fitted_crop_is_the_crop_that_alignment_makes() -> None:
    """A photograph aligned to one size and fitted equals the same photograph aligned to the other."""
    generator = np.random.default_rng(0)
    photo = Image.fromarray(generator.integers(0, 256, (200, 220, 3), np.uint8))
    turn = np.array([[0.9, -0.3], [0.3, 0.9]])
    points = reference_points(*WIDE) @ turn.T + (70, 30)
    batch = {}
    for size in (WIDE, NARROW):
        pixels = torch.tensor(np.asarray(crop(photo, points, *size)))
        batch[size] = pixels.permute(2, 0, 1)[None] / 128.0 - 127.5 / 128
    rounding = 1.5 / 128  # of a grey level
    assert (Crop(WIDE, NARROW).fit(batch[WIDE]) - batch[NARROW]).abs().max() < rounding
    widened = Crop(NARROW, WIDE).fit(batch[NARROW])
    assert (widened[..., 8:-8] - batch[WIDE][..., 8:-8]).abs().max() < rounding
    black = torch.full((1, 3, 112, 8), -127.5 / 128)
    assert torch.equal(widened[..., :8], black) and torch.equal(widened[..., -8:], black)
    assert Crop(WIDE, WIDE).fit(batch[WIDE]) is batch[WIDE]


@pytest.mark.parametrize(
    ("sizes", "wanted", "expected"),
    [
        ([WIDE] * 3, NARROW, WIDE),
        ([NARROW] * 3, WIDE, NARROW),
        ([NARROW, WIDE, WIDE], NARROW, WIDE),
        ([NARROW, NARROW, WIDE], NARROW, NARROW),
        ([(250, 250)] * 3, NARROW, NARROW),
        ([WIDE] * 3, (32, 32), (32, 32)),
        ([], NARROW, NARROW),
    ],
)
def test_the_size_that_most_images_have_decides(
    sizes: list[tuple[int, int]], wanted: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert crop_for([encoded(*size) for size in sizes], wanted) == Crop(expected, wanted)


def test_what_is_done_and_what_is_wrong_is_said() -> None:
    words = "images of 112 × 112 for a network of 112 × 96: 8 columns are cut off each side"
    assert Crop(WIDE, NARROW).words == words
    words = "images of 112 × 96 for a network of 112 × 112: 8 black columns are added to each side"
    assert Crop(NARROW, WIDE).words == words
    assert Crop(WIDE, WIDE).words == ""
    chosen = Crop(WIDE, NARROW)
    assert chosen.fault(encoded(250, 240)) == "is 250 × 240"
    assert chosen.fault(encoded(*NARROW)) == "is 112 × 96"
    assert chosen.fault(encoded(*WIDE)) == chosen.fault(np.frombuffer(b"no image", np.uint8)) == "cannot be decoded"
    assert chosen.fault(np.zeros(0, np.uint8)) == "cannot be read"


def test_black_is_what_the_decoder_gives() -> None:
    images = [encoded(*NARROW)]
    ((_, batch),) = decode_images(Decoder(1, *NARROW, torch.device("cpu"), 1), 1, lambda part: images[part])
    assert len(Crop(NARROW, WIDE).fit(batch.images).unique()) == 1
