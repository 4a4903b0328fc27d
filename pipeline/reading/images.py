"""Any list of images, decoded a batch at a time and in order: files, or samples of shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.reading.dali import DecodedBatch, Decoder, EncodedBatch

Images = list[NDArray[Any]]


def decode_images(
    decoder: Decoder, count: int, read: Callable[[slice], Images]
) -> Iterator[tuple[slice, DecodedBatch]]:
    """Decode `count` images, a decoder's batch at a time: which they are, and their pixels.

    Args:
        decoder: one without augmentations.
        count: how many images there are.
        read: positions of images, a slice of ``range(count)``, to their encoded bytes. It is called a few batches
            ahead; what it raises reaches the caller.
    """
    starts = range(0, count, decoder.batch_size)
    parts = [slice(start, min(start + decoder.batch_size, count)) for start in starts]
    return zip(parts, decoder.decode(EncodedBatch(read(part)) for part in parts), strict=True)


def read_image(path: Path) -> NDArray[np.uint8]:
    """The bytes of an image file, encoded as they are.

    Raises:
        ValueError: naming the file when it cannot be read.
    """
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
