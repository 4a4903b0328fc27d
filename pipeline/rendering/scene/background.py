"""What is behind a person: walls, rooms out of focus, leaves, lights and skies."""

import numpy as np
from numpy.typing import NDArray

from pipeline.hashing import hash64, uniform
from pipeline.rendering.exact.draws import Draws

KINDS = ("plain", "wall", "room", "outside", "lights", "leaves")


def drawn_background(draws: Draws, height: int, width: int) -> tuple[NDArray[np.float32], str]:
    """[height, width, 3] linear colours, and the kind."""
    kind = draws.choice(KINDS, (1.5, 2, 2.5, 2, 0.8, 1.2))
    level = draws.uniform(0.02, 0.75)
    level *= level + 0.3
    tint = np.array([1 + draws.normal(0, 0.18), 1 + draws.normal(0, 0.08), 1 + draws.normal(0, 0.22)])
    picture = np.ones((height, width, 3)) * (level * tint)
    if kind == "plain":
        picture = picture * (1 + draws.normal(0, 0.3) * _ramp(height)[:, None, None])
    elif kind == "wall":
        picture = picture * (1 + draws.uniform(0.1, 0.5) * _cloud(draws, height, width, 3, 1))
        picture = picture * (1 + draws.uniform(0.0, 0.15) * _cloud(draws, height, width, 24, 1))
    elif kind == "room":
        picture = picture * (1 + 0.5 * _cloud(draws, height, width, 4, 3))
        for _ in range(draws.choice((2, 3, 4, 6))):
            _boxed(picture, draws)
        picture = _softened(picture, draws.choice((1, 3, 6)))
    elif kind == "outside":
        sky = np.array([0.45, 0.6, 0.9]) * draws.uniform(0.4, 1.1)
        ground = np.array([0.3, 0.3, 0.2]) * draws.uniform(0.2, 0.9)
        edge = np.clip((_ramp(height) - draws.uniform(-0.6, 0.8)) * draws.uniform(1, 6) + 0.5, 0, 1)[:, None, None]
        picture = sky + edge * (ground - sky)
        picture = picture * (
            1 + 0.4 * edge * _cloud(draws, height, width, 14, 1) + 0.15 * _cloud(draws, height, width, 5, 1)
        )
    elif kind == "lights":
        picture = 0.25 * picture
        rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
        for _ in range(draws.choice((4, 8, 14))):
            y, x, radius = draws.uniform(0, height), draws.uniform(0, width), draws.uniform(0.02, 0.09) * height
            inside = np.clip((radius - np.sqrt((rows - y) ** 2 + (columns - x) ** 2)) / 1.5, 0, 1)[:, :, None]
            colour = np.array([draws.uniform(0.3, 1.2), draws.uniform(0.3, 1.0), draws.uniform(0.1, 1.0)])
            picture = picture + 0.7 * inside * colour
    else:
        green = np.array([0.55, 0.8, 0.3]) * draws.uniform(0.15, 0.8)
        picture = green * (1 + 0.6 * _cloud(draws, height, width, 9, 1) + 0.5 * _cloud(draws, height, width, 22, 1))
        picture = picture + 0.4 * np.clip(_cloud(draws, height, width, 7, 1) - 0.4, 0, 1) * np.array([0.8, 0.9, 1.0])
    if kind in ("leaves", "outside"):
        picture = _softened(picture, draws.choice((1, 2, 4)))
    return np.clip(picture, 0.002, 1.5).astype(np.float32), kind


def _ramp(size: int) -> NDArray[np.float64]:
    """[size] from -1 to 1."""
    return (2 * np.arange(size) + 1) / size - 1


def _cloud(draws: Draws, height: int, width: int, cells: int, channels: int) -> NDArray[np.float64]:
    """[height, width, channels] smooth noise from -1 to 1, with so many cells a side."""
    word = draws.word()
    side = cells + 1
    grid = 2 * uniform(hash64(word, np.arange(side * side * channels))).reshape(side, side, channels) - 1
    across = _between(grid, width, cells, 1)
    return _between(across, height, cells, 0)


def _between(grid: NDArray[np.float64], size: int, cells: int, axis: int) -> NDArray[np.float64]:
    """`grid` at `size` places along an axis."""
    place = np.arange(size) / size * cells
    low = place.astype(np.int64)
    part = place - low
    part = part * part * (3 - 2 * part)
    part = part[None, :, None] if axis else part[:, None, None]
    first, second = np.take(grid, low, axis), np.take(grid, low + 1, axis)
    return first + part * (second - first)


def _boxed(picture: NDArray[np.float64], draws: Draws) -> None:
    """Draw a box, such as a window, a shelf or a door, over a picture."""
    height, width = picture.shape[:2]
    top, left = int(draws.uniform(-0.3, 0.9) * height), int(draws.uniform(-0.3, 0.9) * width)
    bottom, right = top + int(draws.uniform(0.1, 0.9) * height), left + int(draws.uniform(0.05, 0.5) * width)
    colour = draws.uniform(0.02, 0.9) * np.array([1.0, draws.uniform(0.7, 1.1), draws.uniform(0.5, 1.2)])
    picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = colour


def _softened(picture: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Out of focus: the mean over a square, twice. Running sums are added in order."""
    width = 2 * radius + 1
    for _ in range(2):
        for axis in (0, 1):
            pad = [(radius + 1, radius) if k == axis else (0, 0) for k in range(3)]
            until = np.cumsum(np.pad(picture, pad, mode="edge"), axis)
            size = picture.shape[axis]
            picture = (
                np.take(until, np.arange(width, width + size), axis) - np.take(until, np.arange(size), axis)
            ) / width
    return picture
