"""Bad images are found with few decodes, wherever they lie, and those that hide in a good header too."""

from collections.abc import Collection

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

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
    return Salvage((3, H, W), torch.device("cpu"), (Mirror(name="mirror"),), plain, augmented)


def test_what_the_header_shows_costs_one_decode_each_and_one_for_the_rest() -> None:
    plain, augmented = Decoding({3, 9}), Decoding({3, 9})
    decoded = salvage(plain, augmented).decode(EncodedBatch(images(20, broken={3, 9})))
    assert decoded.bad == (3, 9)
    assert plain.batches == []
    assert augmented.batches == [[3], [9], [n for n in range(20) if n not in {3, 9}]]
    assert decoded.images[:, 0, 0, 0].tolist() == [0 if n in {3, 9} else n for n in range(20)]


def test_an_odd_header_alone_is_no_fault() -> None:
    decoded = salvage(Decoding(), Decoding()).decode(EncodedBatch(images(4, broken={2})))
    assert decoded.bad == ()


@pytest.mark.parametrize("bad", [{0}, {19}, {3, 4, 5}, set(range(20))])
def test_what_hides_is_found_by_bisection(bad: set[int]) -> None:
    plain = Decoding(bad)
    decoded = salvage(plain, Decoding(bad)).decode(EncodedBatch(images(20)))
    assert decoded.bad == tuple(sorted(bad))
    assert len(plain.batches) <= 2 * len(bad) * 5 + 1


def test_wrong_sizes_are_not_asked_again() -> None:
    plain, augmented = Decoding(), Decoding()
    decoded = salvage(plain, augmented).decode(EncodedBatch(images(4)), wrong_size=[1])
    assert (decoded.bad, plain.batches, augmented.batches) == ((1,), [], [[0, 2, 3]])


def test_an_augmentation_that_fails_on_good_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.augment: \[mirror\] failed on an image that can be decoded: cannot"):
        salvage(Decoding(), Decoding({1})).decode(EncodedBatch(images(4)))
