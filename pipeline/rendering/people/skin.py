"""Skin: its colour, marks, brows, lips and beard, painted on the map of the head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.hashing import hash64, uniform
from pipeline.rendering.people.chart import Chart
from pipeline.rendering.people.painting import FIELDS, paint
from pipeline.rendering.people.styles import Colour

EYE_X, EYE_Y = 0.308, 7.284  # of the base mesh, in decimetres
_LATTICE = 32  # the noise repeats after so many cells

# Reflectance from the lightest to the darkest skin (sRGB of the six Fitzpatrick types, made linear).
TONES: tuple[Colour, ...] = (
    (0.76, 0.53, 0.43),
    (0.69, 0.44, 0.32),
    (0.57, 0.34, 0.225),
    (0.40, 0.215, 0.13),
    (0.23, 0.115, 0.068),
    (0.115, 0.056, 0.036),
)


@dataclass(frozen=True)
class Skin:
    """What is painted: colours, numbers by FIELDS, and marks [M, 4] as x, y, radius and darkness."""

    base: Colour
    lips: Colour
    hair: Colour
    brow: Colour
    shade: Colour  # of make-up on the lids
    numbers: dict[str, float]
    marks: NDArray[np.float32]
    offset: NDArray[np.float32]  # [3] where in the noise the person is


def tone(darkness: float) -> Colour:
    """The reflectance for a darkness from 0 to 1, between neighbours of `TONES`."""
    place = min(max(darkness, 0.0), 1.0) * (len(TONES) - 1)
    low = min(int(place), len(TONES) - 2)
    part = place - low
    red, green, blue = ((1 - part) * a + part * b for a, b in zip(TONES[low], TONES[low + 1], strict=True))
    return red, green, blue


def lattice() -> NDArray[np.float32]:
    """[L, L, L] the numbers from -1 to 1 between which the noise goes; the same for everyone."""
    i = np.arange(_LATTICE)
    return (2 * uniform(hash64(i[:, None, None], i[None, :, None], i[None, None, :])) - 1).astype(np.float32)


def painted(skin: Skin, chart: Chart, noise: NDArray[np.float32], growth: NDArray[np.float32]) -> NDArray[np.float32]:
    """[ROWS, COLUMNS, 5] the map of one person: linear RGB, oil (0 to 1) and height.

    Args:
        skin: what to paint.
        chart: the map.
        noise: `lattice()`.
        growth: [ROWS, COLUMNS] where hair of the head grows, 0 to 1.
    """
    colours = np.array([skin.base, skin.lips, skin.hair, skin.brow, skin.shade], np.float32)
    numbers = np.array([skin.numbers[name] for name in FIELDS], np.float32)
    return paint(chart.positions, chart.masks, growth, noise, colours, numbers, skin.marks, skin.offset)
