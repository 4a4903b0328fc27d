"""What is behind a person: walls, rooms out of focus, leaves, lights and skies."""

import numpy as np
from numpy.typing import NDArray

from pipeline.hashing import hash64, uniform
from pipeline.rendering.exact.compiling import compiled
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
        picture = softened(picture, draws.choice((1, 3, 6)))
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
        for _ in range(draws.choice((4, 8, 14))):
            _shone(picture, draws)
    else:
        green = np.array([0.55, 0.8, 0.3]) * draws.uniform(0.15, 0.8)
        picture = green * (1 + 0.6 * _cloud(draws, height, width, 9, 1) + 0.5 * _cloud(draws, height, width, 22, 1))
        picture = picture + 0.4 * np.clip(_cloud(draws, height, width, 7, 1) - 0.4, 0, 1) * np.array([0.8, 0.9, 1.0])
    if kind in ("leaves", "outside"):
        picture = softened(picture, draws.choice((1, 2, 4)))
    return np.clip(picture, 0.002, 1.5).astype(np.float32), kind


def _ramp(size: int) -> NDArray[np.float64]:
    """[size] from -1 to 1."""
    return (2 * np.arange(size) + 1) / size - 1


def _cloud(draws: Draws, height: int, width: int, cells: int, channels: int) -> NDArray[np.float64]:
    """[height, width, channels] smooth noise from -1 to 1, with so many cells a side."""
    word = draws.word()
    side = cells + 1
    grid = 2 * uniform(hash64(word, np.arange(side * side * channels))).reshape(side, side, channels) - 1
    return between(grid, height, width)


@compiled
def between(grid: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """[height, width, K] smoothly between the corners of a grid [C + 1, C + 1, K] of C x C cells."""
    side, channels = grid.shape[0], grid.shape[2]
    cells = side - 1
    across = np.empty((side, width * channels))
    for column in range(width):
        place = column / width * cells
        low = int(place)
        part = place - low
        part = part * part * (3 - 2 * part)
        for line in range(side):
            for k in range(channels):
                first = grid[line, low, k]
                across[line, column * channels + k] = first + part * (grid[line, low + 1, k] - first)
    out = np.empty((height, width * channels))
    for row in range(height):
        place = row / height * cells
        low = int(place)
        part = place - low
        part = part * part * (3 - 2 * part)
        for n in range(width * channels):
            first = across[low, n]
            out[row, n] = first + part * (across[low + 1, n] - first)
    return out.reshape(height, width, channels)


def _boxed(picture: NDArray[np.float64], draws: Draws) -> None:
    """Draw a box, such as a window, a shelf or a door, over a picture."""
    height, width = picture.shape[:2]
    top, left = int(draws.uniform(-0.3, 0.9) * height), int(draws.uniform(-0.3, 0.9) * width)
    bottom, right = top + int(draws.uniform(0.1, 0.9) * height), left + int(draws.uniform(0.05, 0.5) * width)
    colour = draws.uniform(0.02, 0.9) * np.array([1.0, draws.uniform(0.7, 1.1), draws.uniform(0.5, 1.2)])
    picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = colour


def _shone(picture: NDArray[np.float64], draws: Draws) -> None:
    """Add a lamp out of focus, a disc, to a picture."""
    height, width = picture.shape[:2]
    y, x, radius = draws.uniform(0, height), draws.uniform(0, width), draws.uniform(0.02, 0.09) * height
    top, bottom, left, right = (
        int(max(place, 0)) for place in (y - radius, y + radius + 1, x - radius, x + radius + 1)
    )
    rows, columns = np.arange(height)[top:bottom, None], np.arange(width)[None, left:right]
    inside = np.clip((radius - np.sqrt((rows - y) ** 2 + (columns - x) ** 2)) / 1.5, 0, 1)[:, :, None]
    colour = np.array([draws.uniform(0.3, 1.2), draws.uniform(0.3, 1.0), draws.uniform(0.1, 1.0)])
    picture[top:bottom, left:right] += 0.7 * inside * colour


@compiled
def softened(picture: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """[H, W, 3] out of focus: the mean over a square, twice. Running sums are added in order."""
    height, width = picture.shape[:2]
    window = 2 * radius + 1
    out = picture.copy()
    down, across = np.empty((height + window, width * 3)), np.empty((width + window, 3))
    for _ in range(2):
        lines = out.reshape(height, width * 3)
        down[0] = lines[0]
        for place in range(1, height + window):
            line = min(max(place - radius - 1, 0), height - 1)
            for n in range(width * 3):
                down[place, n] = down[place - 1, n] + lines[line, n]
        for row in range(height):
            for n in range(width * 3):
                lines[row, n] = (down[row + window, n] - down[row, n]) / window
            total = out[row, 0].copy()
            across[0] = total
            for place in range(1, width + window):
                column = min(max(place - radius - 1, 0), width - 1)
                for k in range(3):
                    total[k] += out[row, column, k]
                    across[place, k] = total[k]
            for column in range(width):
                for k in range(3):
                    out[row, column, k] = (across[column + window, k] - across[column, k]) / window
    return out
