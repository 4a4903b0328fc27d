"""Lights of a photograph: a sky, a few lamps, and where the first does not reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.draws import Draws


@dataclass(frozen=True)
class Lighting:
    """Light as the camera has its axes."""

    lights: NDArray[np.float32]  # [L, 6] direction towards each, and its colour
    sky: NDArray[np.float32]  # [3, 3] colours from above, from the horizon, from below
    kind: str

    @property
    def axes(self) -> NDArray[np.float32]:
        """[3, 3] right, up and towards the first light."""
        towards = self.lights[0, :3].astype(np.float64)
        right = np.array([towards[2], 0.0, -towards[0]])
        right = _unit(right) if right[0] * right[0] + right[2] * right[2] > 1e-6 else np.array([1.0, 0.0, 0.0])
        up = np.array(
            [
                towards[1] * right[2] - towards[2] * right[1],
                towards[2] * right[0] - towards[0] * right[2],
                towards[0] * right[1] - towards[1] * right[0],
            ]
        )
        return np.stack([right, up, towards]).astype(np.float32)


PLAIN = Lighting(
    np.array([[0.3, 0.5, 0.8124, 0.75, 0.75, 0.75], [-0.5, 0.1, 0.86, 0.25, 0.25, 0.25]], np.float32),
    np.array([[0.45] * 3, [0.35] * 3, [0.2] * 3], np.float32),
    "plain",
)

KINDS = ("studio", "window", "sun", "overcast", "lamps", "flash", "night")


def drawn_lighting(draws: Draws) -> Lighting:
    """A lighting as photographs have it."""
    kind = draws.choice(KINDS, (2, 2, 2, 2, 2, 1.2, 0.6))
    warm, cool = _warmth(draws.uniform(0.0, 1.0)), _warmth(draws.uniform(-0.8, 0.2))
    even = _warmth(draws.normal(0.0, 0.3))
    side = draws.choice((-1.0, 1.0))
    if kind == "studio":
        lamps = [
            _lamp((side * draws.uniform(0.3, 0.9), draws.uniform(0.2, 0.8), 1), 0.8, even),
            _lamp((-side * draws.uniform(0.4, 1.0), draws.uniform(-0.1, 0.4), 1), draws.uniform(0.15, 0.5), even),
        ]
        if draws.chance(0.4):
            lamps.append(_lamp((-side * 1.0, 0.5, -0.7), draws.uniform(0.3, 1.0), cool))
        sky = _sky(draws.uniform(0.15, 0.4), even, even)
    elif kind == "window":
        lamps = [_lamp((side * draws.uniform(0.8, 2.0), draws.uniform(0.0, 0.6), 0.8), draws.uniform(0.6, 1.1), cool)]
        sky = _sky(draws.uniform(0.12, 0.35), cool, warm)
    elif kind == "sun":
        height = draws.uniform(0.4, 1.6)
        lamps = [
            _lamp((side * draws.uniform(0.0, 1.3), height, draws.uniform(0.1, 1.0)), draws.uniform(0.8, 1.3), warm)
        ]
        sky = _sky(draws.uniform(0.25, 0.5), cool, warm)
    elif kind == "overcast":
        lamps = [_lamp((draws.normal(0, 0.4), 1.2, 0.9), draws.uniform(0.2, 0.45), cool)]
        sky = _sky(draws.uniform(0.5, 0.8), cool, even)
    elif kind == "lamps":
        lamps = [
            _lamp(
                (draws.normal(0, 0.8), draws.uniform(0.4, 1.4), draws.uniform(0.3, 1.0)), draws.uniform(0.3, 0.7), warm
            )
            for _ in range(draws.choice((2, 3)))
        ]
        sky = _sky(draws.uniform(0.2, 0.45), warm, warm)
    elif kind == "flash":
        lamps = [_lamp((draws.normal(0, 0.12), draws.uniform(0.05, 0.3), 1), draws.uniform(0.8, 1.2), even)]
        sky = _sky(draws.uniform(0.1, 0.25), warm, warm)
    else:
        colours = [(1.0, 0.35, 0.3), (0.35, 0.5, 1.0), (0.9, 0.4, 1.0), (1.0, 0.75, 0.4), (0.5, 1.0, 0.8)]
        lamps = [
            _lamp((draws.normal(0, 1.0), draws.uniform(-0.2, 1.0), 0.8), draws.uniform(0.4, 0.8), draws.choice(colours))
            for _ in range(2)
        ]
        sky = _sky(draws.uniform(0.12, 0.3), warm, cool)
    return Lighting(np.array(lamps, np.float32), sky, kind)


def _warmth(amount: float) -> tuple[float, float, float]:
    """White for 0, a bulb for 1, a blue sky for -1; equally bright."""
    red, blue = 1 + 0.10 * amount, 1 - 0.20 * amount
    return red, 1.0, blue


def _lamp(direction: tuple[float, float, float], strength: float, colour: tuple[float, float, float]) -> list[float]:
    return [*_unit(np.array(direction)).tolist(), *(strength * c for c in colour)]


def _sky(strength: float, above: tuple[float, float, float], below: tuple[float, float, float]) -> NDArray[np.float32]:
    middle = [(a + b) / 2 for a, b in zip(above, below, strict=True)]
    rows = [[1.25 * strength * c for c in above], [strength * c for c in middle], [0.55 * strength * c for c in below]]
    return np.array(rows, np.float32)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = vector.tolist()
    return vector / np.sqrt(x * x + y * y + z * z)
