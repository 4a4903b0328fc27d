"""Alignment by given points: the pixels of the crop, and what cannot be aligned."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.shards.alignment.given import aligned
from pipeline.shards.alignment.similarity import crop, reference_points
from pipeline.shards.images import SetAsideError


def encoded(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("size", [(112, 96), (112, 112)])
def test_the_pixels_are_those_of_the_crop(size: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (180, 150, 3), np.uint8)
    points = reference_points(*size) @ np.array([[0.8, 0.2], [-0.2, 0.8]]) + (9.5, 30.25)
    found = np.asarray(Image.open(io.BytesIO(aligned(encoded(photo), points, size))))
    np.testing.assert_array_equal(found, np.asarray(crop(Image.fromarray(photo), points, *size)))


def test_a_face_that_is_only_shifted_comes_out_as_it_was() -> None:
    face = np.random.default_rng(1).integers(0, 256, (112, 96, 3), np.uint8)
    photo = np.zeros((140, 130, 3), np.uint8)
    photo[20:132, 11:107] = face
    points = reference_points(112, 96) + np.array([11, 20])
    for pixels, wanted in ((photo, face), (photo[..., 0], face[..., :1].repeat(3, axis=2))):
        found = np.asarray(Image.open(io.BytesIO(aligned(encoded(pixels), points, (112, 96)))))
        np.testing.assert_allclose(found.astype(int), wanted, atol=1)  # a grey level of rounding


def test_what_cannot_be_aligned_is_named() -> None:
    points = reference_points(112, 96)
    with pytest.raises(SetAsideError, match="does not decode"):
        aligned(b"no image", points, (112, 96))
    with pytest.raises(ValueError, match="landmarks: got five equal points"):
        aligned(encoded(np.zeros((9, 9, 3), np.uint8)), np.ones((5, 2)), (112, 96))
