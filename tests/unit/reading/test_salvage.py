"""Images that may not be decodable stay out of the batch, and are decoded each alone."""

import io
from collections.abc import Collection

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.reading.augment import Mirror
from pipeline.reading.salvage import EncodedBatch, Salvage, UndecodableError
from tests.encodings import encoded, noisy

H, W = 16, 24
WHOLE = encoded(noisy("RGB", H, W), format="PNG")


class Decoding:
    """Decodes each image to its own number, unless one of them is `bad`; images are numbered by a byte at their end."""

    def __init__(self, bad: Collection[int] = ()) -> None:
        self.bad, self.batches = bad, list[list[int]]()

    def __call__(self, batch: EncodedBatch) -> torch.Tensor:
        numbers = [int(image[-1]) for image in batch.images]
        self.batches.append(numbers)
        if set(numbers) & set(self.bad):
            raise UndecodableError from RuntimeError("cannot decode")
        return torch.tensor(numbers).float()[:, None, None, None].expand(-1, 3, H, W)


def images(count: int, broken: Collection[int] = ()) -> list[NDArray[np.uint8]]:
    """`count` images, those of `broken` with a header that shows it."""
    start = {number: np.zeros(5, np.uint8) if number in broken else WHOLE for number in range(count)}
    return [np.append(start[number], np.uint8(number)) for number in range(count)]


def salvage(plain: Decoding, augmented: Decoding) -> Salvage:
    return Salvage((3, H, W), (Mirror(name="mirror"),), plain, augmented)


def test_odd_headers_are_kept_from_the_batch() -> None:
    batch = EncodedBatch(images(5, broken={1, 4}))
    keeper = salvage(Decoding(), Decoding())
    doubtful = keeper.doubtful(batch)
    assert doubtful == [1, 4]
    given = keeper.without(batch, doubtful)
    for position, image in enumerate(given.images):
        pixels = np.asarray(Image.open(io.BytesIO(image.tobytes())).convert("RGB"))
        assert pixels.shape == (H, W, 3)
        assert (pixels == 0).all() == (position in doubtful)
    assert keeper.without(batch, []) is batch


def test_doubtful_images_are_decoded_each_alone_into_their_places() -> None:
    plain, augmented = Decoding({3}), Decoding({3})
    pixels = torch.full((5, 3, H, W), 7.0)
    decoded = salvage(plain, augmented).decode(EncodedBatch(images(5, broken={1, 3})), [1, 3], pixels)
    assert decoded.bad == (3,)
    assert augmented.batches == [[1], [3]]
    assert plain.batches == []
    assert decoded.images[:, 0, 0, 0].tolist() == [7, 1, 7, 0, 7]


def test_what_is_left_out_is_neither_doubted_nor_decoded() -> None:
    plain, augmented = Decoding(), Decoding({1})
    keeper, batch = salvage(plain, augmented), EncodedBatch(images(5, broken={1, 3, 4}), left_out=(0, 3))
    assert keeper.doubtful(batch) == [1, 4]
    given = keeper.without(batch, [1, 4])
    black = [position for position, image in enumerate(given.images) if image is not batch.images[position]]
    assert (black, given.left_out) == ([0, 1, 3, 4], (0, 3))
    decoded = keeper.decode(batch, [1, 4], torch.full((5, 3, H, W), 7.0))
    assert decoded.bad == (0, 1, 3)
    assert augmented.batches == [[1], [4]]
    assert decoded.images[:, 0, 0, 0].tolist() == [0, 0, 7, 0, 4]


def test_an_augmentation_that_fails_on_a_good_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.augment: \[mirror\] failed on an image that can be decoded: cannot"):
        salvage(Decoding(), Decoding({1})).decode(EncodedBatch(images(4)), [0, 1], torch.zeros(4, 3, H, W))
