"""How a network takes its pixels: size, channel order, mean and scale. Most wrong embeddings come from a wrong one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

CHANNELS = ("RGB", "BGR")
LAYOUTS = ("NCHW", "NHWC")
MEAN, SCALE = 127.5, 1 / 128  # of this project's own networks, as SphereFace's solver has them


@dataclass(frozen=True)
class Feeding:
    """The input of a network: ``(pixel - mean) * scale`` with pixels from 0 to 255.

    Attributes:
        height, width: of the crop, in pixels.
        channels: their order, one of `CHANNELS`.
        mean, scale: one number each, or one for each channel in that order.
        layout: of the batch, one of `LAYOUTS`.
        dtype: of the numbers, "float32" or "uint8".
    """

    height: int
    width: int
    channels: str = "RGB"
    mean: tuple[float, ...] = (MEAN,)
    scale: tuple[float, ...] = (SCALE,)
    layout: str = "NCHW"
    dtype: str = "float32"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """The input for images ``[B, 3, H, W]`` as the decoder gives them: RGB, ``(pixel - 127.5) / 128``."""
        if self.channels == "BGR":
            images = images.flip(1)
        if (self.mean, self.scale) != ((MEAN,), (SCALE,)):
            # Exact: the decoder subtracts and divides by numbers that float32 holds without rounding.
            pixels = images * 128 + MEAN
            images = (pixels - _column(self.mean, images)) * _column(self.scale, images)
        if self.layout == "NHWC":
            images = images.permute(0, 2, 3, 1)
        return images.round().to(torch.uint8) if self.dtype == "uint8" else images

    def described(self) -> dict[str, Any]:
        """The same facts as ``backbone.json`` has them under "input"."""
        return {
            "dtype": self.dtype,
            "layout": self.layout,
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "normalisation": {
                "formula": "(pixel - mean) * scale",
                "mean": self.mean[0] if len(self.mean) == 1 else list(self.mean),
                "scale": self.scale[0] if len(self.scale) == 1 else list(self.scale),
            },
        }


class Fed(nn.Module):
    """A network that takes images as the decoder gives them."""

    def __init__(self, network: nn.Module, feeding: Feeding) -> None:
        super().__init__()
        self.network, self.feeding = network, feeding

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[B, D]`` of images ``[B, 3, H, W]``, RGB, ``(pixel - 127.5) / 128``."""
        result: torch.Tensor = self.network(self.feeding.apply(images))
        return result


@dataclass(frozen=True)
class Given:
    """What is known of a network's input, from flags, metadata or a JSON; None is unknown."""

    size: tuple[int, int] | None = None
    channels: str | None = None
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    layout: str | None = None
    dtype: str | None = None

    def filled(self, other: Given) -> Given:
        """These facts, and those of `other` for what is unknown."""
        unknown = {name: getattr(other, name) for name, value in vars(self).items() if value is None}
        return replace(self, **unknown)

    def feeding(self, source: str) -> Feeding:
        """The input, if everything is known.

        Raises ValueError, naming `source` and the flag to give, for what is unknown or not possible.
        """
        for name, flag in (("size", "--size 112x112"), ("mean", "--mean 127.5"), ("scale", "--scale 0.0078125")):
            if getattr(self, name) is None:
                raise ValueError(
                    f"{source}: got no {name} of the input, wanted it in its metadata, in a JSON beside it or as {flag}"
                )
        assert self.size is not None
        assert self.mean is not None
        assert self.scale is not None
        channels, layout, dtype = self.channels or "RGB", self.layout or "NCHW", self.dtype or "float32"
        for name, value, wanted in (
            ("channels", channels, CHANNELS),
            ("layout", layout, LAYOUTS),
            ("dtype", dtype, ("float32", "uint8")),
        ):
            if value not in wanted:
                raise ValueError(f"{source}: {name}: got {value!r}, wanted one of {', '.join(wanted)}")
        for name, numbers in (("mean", self.mean), ("scale", self.scale)):
            if len(numbers) not in {1, 3} or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{source}: {name}: got {list(numbers)}, wanted one number or three")
        return Feeding(*self.size, channels, self.mean, self.scale, layout, dtype)


def read_description(file: Path) -> Given:
    """What a JSON such as ``backbone.json`` says of the input; nothing if the file does not exist.

    Raises ValueError naming a file that is not such a JSON.
    """
    if not file.is_file():
        return Given()
    try:
        return of_description(json.loads(file.read_text(encoding="utf-8"))["input"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: got {error!r}, wanted a JSON object with an 'input', as stages/export.py writes"
        ) from None


def of_description(facts: Mapping[str, Any]) -> Given:
    """The facts under "input" of a ``backbone.json``."""
    normalisation = facts.get("normalisation", {})
    size = (int(facts["height"]), int(facts["width"])) if {"height", "width"} <= facts.keys() else None
    return Given(
        size,
        facts.get("channels"),
        _numbers(normalisation.get("mean")),
        _numbers(normalisation.get("scale")),
        facts.get("layout"),
        facts.get("dtype"),
    )


def _numbers(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),)


def _column(numbers: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    """Numbers as ``[1 or 3, 1, 1]``, to be combined with images ``[B, 3, H, W]``."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None, None]
