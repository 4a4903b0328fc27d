"""Loose crops as a list of images: each is aligned by its given points when it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.embedding.source import ImageList, image_files
from pipeline.evaluation.scoring.verification import FloatArray
from pipeline.reading.images import Images
from pipeline.shards.alignment.given import aligned
from pipeline.shards.alignment.similarity import reference_points


def aligned_files(
    folder: Path, paths: Sequence[str], points: FloatArray, size: tuple[int, int], threads: int
) -> ImageList:
    """The image files `paths` below `folder`, aligned by `points` ``[N, 5, 2]`` to crops of `size`, by `threads`.

    One that cannot be aligned is left as it is, and so is left out for its size or its bytes. Raises ValueError if no
    points were published for this size.
    """
    reference_points(*size)
    loose = image_files(folder, paths)
    digest = hashlib.sha256(f"{loose.digest} {size}".encode() + points.tobytes()).hexdigest()

    def read(part: slice) -> Images:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(partial(_aligned, size=size), loose.read(part), points[part]))

    return ImageList(paths, read, digest)


def _aligned(image: NDArray[Any], points: FloatArray, size: tuple[int, int]) -> NDArray[Any]:
    try:
        return np.frombuffer(aligned(image.tobytes(), points, size), np.uint8)
    except ValueError:  # it does not decode (SetAsideError), or its points are no face
        return image
