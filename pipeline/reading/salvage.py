"""Images that may not be decodable: kept from the graph that decodes batches, and decoded each alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.reading.augmentation import Augmentation, Parameters
from pipeline.shards.decode import black_image
from pipeline.shards.images import SetAsideError, extension_of


def encoded_black(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """An image of this shape (3, H, W) that can be decoded."""
    return np.frombuffer(black_image(*shape[1:]), np.uint8)


class UndecodableError(Exception):
    """A batch holds at least one image that DALI refuses, or that has another size."""


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded images (``uint8`` vectors), and what `parameters_of` gives: rows of images.

    Those at the positions of ``left_out`` are known to be undecodable: they are not decoded.
    """

    images: list[NDArray[Any]]
    parameters: tuple[Parameters, ...] = ()
    left_out: tuple[int, ...] = ()

    def take(self, positions: Sequence[int]) -> EncodedBatch:
        """The images at these positions."""
        return EncodedBatch(
            [self.images[position] for position in positions],
            tuple(rows[list(positions)] for rows in self.parameters),
        )


@dataclass(frozen=True)
class DecodedBatch:
    """Pixels ``[B, 3, H, W]`` float32, and the positions that could not be decoded, ascending (zeros there)."""

    images: torch.Tensor
    bad: tuple[int, ...]

    @property
    def good(self) -> NDArray[np.bool_]:
        """Which images were decoded, [B]."""
        good = np.ones(len(self.images), dtype=bool)
        good[list(self.bad)] = False
        return good


# Decodes a batch as a whole, pixels [B, 3, H, W], or raises UndecodableError.
Decode = Callable[[EncodedBatch], torch.Tensor]


class Salvage:
    """Decodes doubtful images each alone: those with an odd header, and all of a batch that DALI refused.

    Never several at once: DALI's decoder (2.4, nvImageCodec 0.9) may end the process with a segmentation fault if an
    image fails while others of its batch are still being decoded. Alone, failures are exceptions, thousands in a row.

    Args:
        shape: of an image's pixels, (3, H, W).
        augment: names for the message when one of them fails.
        plain, augmented: decode a batch without parameters and without augmentations; with both.
    """

    def __init__(
        self, shape: tuple[int, int, int], augment: Sequence[Augmentation], plain: Decode, augmented: Decode
    ) -> None:
        self._shape, self._augment = shape, augment
        self._plain, self._augmented = plain, augmented

    def doubtful(self, batch: EncodedBatch) -> list[int]:
        """Positions of the images whose header is not that of a whole image of the right size (1 µs an image)."""
        odd = [position for position, image in enumerate(batch.images) if not self._looks_whole(image)]
        return [position for position in odd if position not in batch.left_out]

    def without(self, batch: EncodedBatch, positions: Sequence[int]) -> EncodedBatch:
        """The batch with a black image in the place of those at these positions, and of those that are left out."""
        if not positions and not batch.left_out:
            return batch
        images = list(batch.images)
        for position in (*positions, *batch.left_out):
            images[position] = encoded_black(self._shape)
        return EncodedBatch(images, batch.parameters, batch.left_out)

    def decode(self, batch: EncodedBatch, positions: Sequence[int], pixels: torch.Tensor) -> DecodedBatch:
        """Decode the images at these positions, each alone, into ``pixels`` ``[B, 3, H, W]``.

        Zeros for an image that is bad, or that the batch leaves out.

        Raises:
            ValueError: when an augmentation fails on an image that can be decoded.
        """
        bad = list(batch.left_out)
        pixels[bad] = 0
        for position in positions:
            one = batch.take([position])
            try:
                pixels[position] = self._augmented(one)[0]
            except UndecodableError as error:
                if self._is_decodable(one):
                    raise self._failure(error) from error
                pixels[position] = 0
                bad.append(position)
        return DecodedBatch(pixels, tuple(sorted(bad)))

    def _looks_whole(self, image: NDArray[Any]) -> bool:
        try:
            extension_of(image.tobytes(), *self._shape[1:])
        except SetAsideError:
            return False
        return True

    def _is_decodable(self, one: EncodedBatch) -> bool:
        if not self._augment or self.doubtful(one):
            return False  # without augmentations it was just asked; an odd header is reason enough
        try:
            self._plain(EncodedBatch(one.images))
        except UndecodableError:
            return False
        return True

    def _failure(self, error: UndecodableError) -> ValueError:
        """If it was not raised, all images would count as bad."""
        reason = " ".join(str(error.__cause__).split())
        names = ", ".join(augmentation.name for augmentation in self._augment)
        return ValueError(f"data.augment: [{names}] failed on an image that can be decoded: {reason}")
