"""One noisy image in every encoding that face sets come in, and what Pillow makes of it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}
SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def noisy(mode: str, height: int, width: int, seed: int = 0) -> Image.Image:
    """Coloured shapes under strong noise: flat chroma would look alike however it is upsampled."""
    generator = np.random.default_rng(seed)
    shapes = generator.integers(0, 256, (height // 8, width // 8, CHANNELS[mode]))
    # np.resize would repeat, PIL has no CMYK or RGBA filter worth trusting: blocks of 8 do
    pixels = shapes.repeat(8, axis=0).repeat(8, axis=1)
    pixels = np.pad(pixels, ((0, height % 8), (0, width % 8), (0, 0)), mode="edge")
    pixels = (pixels + generator.integers(-40, 41, pixels.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def encoded(image: Image.Image, **options: Any) -> NDArray[np.uint8]:
    """The image in the format and with the options that Pillow's `save` is given."""
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def encodings(height: int, width: int) -> dict[str, NDArray[np.uint8]]:
    """Kind -> the image, encoded."""
    found = {}
    for mode in ("RGB", "L", "CMYK"):
        image = noisy(mode, height, width)
        for quality in (60, 95):
            for progressive in (False, True):
                kinds = SUBSAMPLING.items() if mode == "RGB" else [("", 0)]
                for name, subsampling in kinds:
                    words = f"JPEG {mode} {name} {quality}{' progressive' if progressive else ''}"
                    options = {"quality": quality, "progressive": progressive, "subsampling": subsampling}
                    found[words] = encoded(image, format="JPEG", **options)
    for mode in ("RGB", "RGBA", "L"):
        found[f"PNG {mode}"] = encoded(noisy(mode, height, width), format="PNG")
    found["PNG palette"] = encoded(noisy("RGB", height, width).quantize(64), format="PNG")
    return found


def pillow(image: NDArray[np.uint8]) -> torch.Tensor:
    """What Pillow decodes, normalised as the network takes it: [3, H, W] float64."""
    pixels = np.asarray(Image.open(io.BytesIO(image.tobytes())).convert("RGB"), dtype=np.float64)
    return torch.from_numpy((pixels - 127.5) / 128).permute(2, 0, 1)
