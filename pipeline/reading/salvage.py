"""A batch that holds images which cannot be decoded: finds them, and decodes the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.reading.augment import Augmentation, Parameters
from pipeline.shards.images import SetAsideError, extension_of


class UndecodableError(Exception):
    """A batch holds at least one image that DALI refuses, or that has another size."""


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded images (``uint8`` vectors) and, for each of the decoder's augmentations, a row of parameters an image."""

    images: list[NDArray[Any]]
    parameters: tuple[Parameters, ...] = ()

    def take(self, positions: Sequence[int]) -> EncodedBatch:
        """The images at these positions."""
        return EncodedBatch(
            [self.images[position] for position in positions],
            tuple(rows[list(positions)] for rows in self.parameters),
        )


@dataclass(frozen=True)
class DecodedBatch:
    """Pixels ``[B, 3, H, W]`` float32, and the positions that could not be decoded (zeros there)."""

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
    """Decodes the good images of batches that hold bad ones.

    Args:
        shape: of an image's pixels, (3, H, W).
        device: where the pixels go.
        augment: names for the message when one of them fails.
        plain, augmented: decode a batch without parameters and without augmentations; with both.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        device: torch.device,
        augment: Sequence[Augmentation],
        plain: Decode,
        augmented: Decode,
    ) -> None:
        self._shape, self._device, self._augment = shape, device, augment
        self._plain, self._augmented = plain, augmented

    def decode(self, batch: EncodedBatch, wrong_size: Sequence[int] = ()) -> DecodedBatch:
        """Good images decoded, bad ones found; `wrong_size` are positions that are known to be bad.

        Raises:
            ValueError: when an augmentation fails on images that can be decoded.
        """
        bad = set(wrong_size)
        # Most bad images show in their header. Asked alone they cost little, and what is left is decoded at once.
        for position, image in enumerate(batch.images):
            if position not in bad and not self._looks_whole(image):
                bad |= _undecodable(self._augmented, batch, [position])
        pixels = torch.zeros(len(batch.images), *self._shape, device=self._device)
        while good := [position for position in range(len(batch.images)) if position not in bad]:
            try:
                pixels[good] = self._augmented(batch.take(good))
                break
            except UndecodableError as error:
                more = _undecodable(self._plain, EncodedBatch(batch.images), good)
                if not more:
                    raise self._failure(error) from error
                bad |= more
        return DecodedBatch(pixels, tuple(sorted(bad)))

    def _looks_whole(self, image: NDArray[Any]) -> bool:
        try:
            extension_of(image.tobytes(), *self._shape[1:])
        except SetAsideError:
            return False
        return True

    def _failure(self, error: UndecodableError) -> Exception:
        """Why good images could not be decoded together; if it was not raised, all images would count as bad."""
        reason = " ".join(str(error.__cause__).split())
        names = ", ".join(augmentation.name for augmentation in self._augment)
        if not names:
            return RuntimeError(f"decoder: failed on images that can be decoded: {reason}")
        return ValueError(f"data.augment: [{names}] failed on an image that can be decoded: {reason}")


def _undecodable(decode: Decode, batch: EncodedBatch, positions: Sequence[int]) -> set[int]:
    """Those of `positions` that cannot be decoded alone: by bisection."""
    try:
        decode(batch.take(positions))
    except UndecodableError:
        if len(positions) == 1:
            return set(positions)
        middle = len(positions) // 2
        return _undecodable(decode, batch, positions[:middle]) | _undecodable(decode, batch, positions[middle:])
    return set()
