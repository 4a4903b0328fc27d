"""A photograph whose five points are given, as IJB's are: its aligned crop, without a detector."""

import io

from pipeline.shards.alignment.similarity import Points, crop
from pipeline.shards.decode import decoded


def aligned(data: bytes, points: Points, size: tuple[int, int]) -> bytes:
    """The aligned crop of an encoded image as PNG, whose pixels are those of the crop.

    Args:
        points: [5, 2] x and y of eyes, nose and corners of the mouth, in pixels of the image as it is stored.
        size: (height, width) of the crop: 112x96 or 112x112.

    Raises:
        SetAsideError: the image does not decode.
        ValueError: the points are no face, or none were published for this size.
    """
    stream = io.BytesIO()
    crop(decoded(data).convert("RGB"), points, *size).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
