"""Aligned crops of one published size for a network of the other: 112 × 112 and 112 × 96 differ by a shift.

The reference points of both are the same but for 8 columns (`alignment.similarity.SHIFTS`), so to cut or to add columns
gives every point its place exactly, and no pixel is interpolated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline.shards.alignment.similarity import SHIFTS
from pipeline.shards.images import SetAsideError, read_header

LOOKED_AT = 32  # images of a list, to find out their size
BLACK = -127.5 / 128  # as the decoder gives it

Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Crop:
    """How images of a size become those of another.

    Attributes:
        size: of the images as they are stored; others are left out.
        input: of the network's input.
    """

    size: Size
    input: Size

    def fit(self, images: torch.Tensor) -> torch.Tensor:
        """Images ``[B, 3, H, W]`` of `size`, as the decoder gives them, as those of `input`."""
        left = round(SHIFTS[self.size] - SHIFTS[self.input]) if self.size != self.input else 0
        right = self.size[1] - self.input[1] - left
        return F.pad(images, (-left, -right), value=BLACK) if left or right else images

    @property
    def words(self) -> str:
        """What is done to the images, for people; empty if nothing is."""
        columns = (self.size[1] - self.input[1]) // 2
        if not columns:
            return ""
        done = f"{columns} columns are cut off" if columns > 0 else f"{-columns} black columns are added to"
        return f"images of {_named(self.size)} for a network of {_named(self.input)}: {done} each side"

    @property
    def wanted(self) -> str:
        """What an image must be, for messages."""
        return f"images {self.size[0]} high and {self.size[1]} wide"

    def fault(self, image: NDArray[Any]) -> str:
        """Why an encoded image was left out: "is 250 × 250", "cannot be decoded", "cannot be read" if it is empty."""
        if not len(image):
            return "cannot be read"
        size = size_of(image)
        return "cannot be decoded" if size in {None, self.size} else f"is {_named(size)}"


def crop_for(images: Iterable[NDArray[Any]], size: Size) -> Crop:
    """The crop for a list that begins with these encoded images, and a network that takes `size`.

    It is one of another size if that is the other published one and most of the images have it.
    """
    sizes = Counter(map(size_of, images))
    most = max(sizes, key=sizes.__getitem__, default=None)
    return Crop(most if most in SHIFTS and size in SHIFTS else size, size)


def size_of(image: NDArray[Any]) -> Size | None:
    """Height and width in the header of an encoded image; None if it is no JPEG or PNG."""
    try:
        return read_header(image.tobytes())[1:]
    except SetAsideError:
        return None


def _named(size: Size) -> str:
    return f"{size[0]} × {size[1]}"
