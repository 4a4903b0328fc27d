"""A source whose images of another size are resized or cropped on request; all others stay byte for byte."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.shards.images import SetAsideError, read_header
from pipeline.shards.sources import SetAside, Source

WAYS = ("stretch", "crop")
JPEG_QUALITY = 95


@dataclass(frozen=True)
class FittedSource:
    """Another source, its images stretched to a size or cropped around their middle, and encoded anew as JPEG."""

    source: Source
    height: int
    width: int
    way: str

    @property
    def kind(self) -> str:
        """Says that these are not the source's bytes."""
        return f"{self.source.kind}, {self.way} to {self.height}x{self.width}"

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
        """The image, of the right size; the source's own bytes if it had that size already."""
        return self._fitted(self.source.read(sample))

    def read_many(self, samples: NDArray[np.int64]) -> Iterator[tuple[str, bytes | SetAsideError]]:
        """Those of the source, as `read` gives them."""
        for key, image in self.source.read_many(samples):
            try:
                yield key, image if isinstance(image, SetAsideError) else self._fitted(image)
            except SetAsideError as error:
                yield key, error

    def _fitted(self, data: bytes) -> bytes:
        header = read_header(data)
        if (header.height, header.width) == (self.height, self.width):
            return data
        return fit(data, self.height, self.width, self.way)


def fit(data: bytes, height: int, width: int, way: str) -> bytes:
    """An encoded image brought to height x width, as JPEG; grey stays grey.

    Raises:
        SetAsideError: it does not decode.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("L" if opened.mode in {"1", "L", "I", "I;16"} else "RGB")
    except (OSError, SyntaxError) as error:
        raise SetAsideError(f"does not decode: {error}") from error
    if way == "crop":
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    else:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
