"""Sources that look at the images of another source: one that decodes all of them, one that fits them to a size."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.shards.decode import decoded
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.images import SetAsideError, extension_of
from pipeline.shards.sources import Read, Source

WAYS = ("stretch", "crop")
JPEG_QUALITY = 95


@dataclass(frozen=True)
class DecodedSource:
    """Another source, each image decoded as it is read, so that one that does not decode is set aside."""

    source: Source

    @property
    def kind(self) -> str:
        """Says that images were decoded."""
        return f"{self.source.kind}, decoded"

    @property
    def sequential(self) -> bool:
        """As the source."""
        return self.source.sequential

    @property
    def identities(self) -> Sequence[str]:
        """Those of the source."""
        return self.source.identities

    @property
    def labels(self) -> NDArray[np.uint32]:
        """Those of the source."""
        return self.source.labels

    @property
    def set_aside(self) -> Sequence[SetAside]:
        """What the source left out."""
        return self.source.set_aside

    def digest(self) -> str:
        """SHA-256 of the source's digest and of what is done to it."""
        return hashlib.sha256(f"{self.source.digest()} {self.kind}".encode()).hexdigest()

    def key(self, sample: int) -> str:
        """That of the source."""
        return self.source.key(sample)

    def modified(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """That of the source."""
        return self.source.modified(samples)

    def read(self, sample: int) -> bytes:
        """The image after `passed`."""
        return self.passed(self.source.read(sample))

    def read_many(self, samples: NDArray[np.int64]) -> Iterator[Read]:
        """Those of the source, as `read` gives them; fields stay as they are, also if they are places in the image."""
        for one in self.source.read_many(samples):
            try:
                yield one if isinstance(one.image, SetAsideError) else one._replace(image=self.passed(one.image))
            except SetAsideError as error:
                yield one._replace(image=error)

    def passed(self, data: bytes) -> bytes:
        """What becomes of one image: its own bytes.

        Raises:
            SetAsideError: it does not decode.
        """
        decoded(data)
        return data


@dataclass(frozen=True)
class FittedSource(DecodedSource):
    """Another source, its images of another size stretched or cropped around their middle; others stay as they are."""

    height: int
    width: int
    way: str

    @property
    def kind(self) -> str:
        """Says that these are not the source's bytes."""
        return f"{self.source.kind}, {self.way} to {self.height}x{self.width}"

    def passed(self, data: bytes) -> bytes:
        """What becomes of one image: a JPEG of the size; its own bytes if it has that size and may be in shards.

        Raises:
            SetAsideError: it does not decode.
        """
        with suppress(SetAsideError):
            extension_of(data, self.height, self.width)
            return data
        return fit(data, self.height, self.width, self.way)


def fit(data: bytes, height: int, width: int, way: str) -> bytes:
    """An encoded image, upright by its EXIF tag, brought to height x width as JPEG; grey stays grey.

    Raises:
        SetAsideError: it does not decode.
    """
    image = decoded(data, upright=True)
    if way == "crop":
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    else:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
