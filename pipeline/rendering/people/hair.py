"""Hair of the head: hairlines, and the locks that grow behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.hashing import hash64, uniform
from pipeline.rendering.exact.compiling import compiled
from pipeline.rendering.exact.draws import Draws
from pipeline.rendering.people.chart import BOTTOM, COLUMNS, ROWS, TOP
from pipeline.rendering.people.strands import Locks, grown, sines
from pipeline.rendering.people.styles import Style

# |angle| around the head (0 in front, 1 at the ear, 2 behind) -> height of the hairline in decimetres.
_ANGLES = (0.0, 0.2, 0.38, 0.52, 0.62, 0.72, 0.82, 0.90, 1.02, 1.18, 1.35, 2.0)


@dataclass(frozen=True)
class Hairline:
    """Where hair grows: heights [12] at `_ANGLES`."""

    heights: tuple[float, ...]

    def line(self, angle: NDArray[np.float64]) -> NDArray[np.float64]:
        """Its height in decimetres, for angles in [-2, 2]."""
        at = np.abs(angle)
        line = np.full(at.shape, self.heights[-1])
        for k in range(len(_ANGLES) - 1):
            low, high = _ANGLES[k], _ANGLES[k + 1]
            here = (at >= low) & (at < high)
            line[here] = self.heights[k] + (at[here] - low) / (high - low) * (self.heights[k + 1] - self.heights[k])
        return line

    def above(self, angle: NDArray[np.float64], height: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far above the hairline points are, in decimetres."""
        return height - self.line(angle)


def drawn_hairline(draws: Draws, sex: str, age: float) -> Hairline:
    """A hairline: men's recedes with age, at the temples first."""
    front = 7.93 + draws.normal(0, 0.085)
    temple = draws.uniform(0.0, 0.16)
    peak = draws.normal(0, 0.05)
    if sex == "male":
        receding = max(0.0, draws.normal(-0.25, 0.6) + (age - 30) / 40)
        front += 0.10 * receding
        temple += 0.28 * receding
    side = draws.uniform(-0.1, 0.1)
    burns = draws.uniform(7.0, 7.3) if sex == "male" else 7.3
    nape = draws.uniform(6.55, 6.8)
    front = min(front, 8.35)
    heights = (
        front - peak,
        front,
        front + temple * 0.7,
        front - 0.06 + temple,
        7.76 + 0.8 * temple + side,
        7.52 + 0.3 * temple + side,
        7.25 + side,
        burns,
        7.25,
        7.0,
        6.85,
        nape,
    )
    return Hairline(tuple(min(height, 8.4) for height in heights))


def growth(hairline: Hairline) -> NDArray[np.float32]:
    """[ROWS, COLUMNS] where hair grows on the map, 0 to 1."""
    angle = (np.arange(COLUMNS) + 0.5) / COLUMNS * 4 - 2
    height = TOP - (np.arange(ROWS) + 0.5) / ROWS * (TOP - BOTTOM)
    return grown_above(height, hairline.line(angle))


@compiled
def grown_above(height: NDArray[np.float64], line: NDArray[np.float64]) -> NDArray[np.float32]:
    """[R, C] from 0 to 1, smoothly over a tenth of a decimetre, for heights [R] and the hairline's [C]."""
    out = np.zeros((len(height), len(line)), np.float32)
    for row in range(len(height)):
        for column in range(len(line)):
            over = height[row] - line[column] + 0.03
            if over > 0:
                t = min(over / 0.10, 1.0)
                out[row, column] = t * t * (3 - 2 * t)
    return out


def smooth(x: NDArray[Any]) -> NDArray[np.float64]:
    """From 0 at 0 to 1 at 1, smoothly."""
    t = np.clip(x.astype(np.float64), 0, 1)
    return t * t * (3 - 2 * t)


def rooted(
    areas: NDArray[np.float64], weight: NDArray[np.float64], count: int, *key: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Roots spread over faces of some areas [F] by `weight` [F]: [count] faces, and [count, 3] weights of corners."""
    until = np.cumsum(areas * weight)
    lots = uniform(hash64(*key, np.arange(count)[:, None], np.arange(3)))
    chosen = np.searchsorted(until, (np.arange(count) + lots[:, 0]) / max(count, 1) * until[-1])
    s, t = lots[:, 1], lots[:, 2]
    over = s + t > 1
    s, t = np.where(over, 1 - s, s), np.where(over, 1 - t, t)
    return np.minimum(chosen, len(areas) - 1), np.stack([1 - s - t, s, t], 1).astype(np.float32)


def at_roots(
    values: NDArray[np.float32], faces: NDArray[np.int32], chosen: NDArray[np.int64], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """[N, K] values [V, K] of the vertices at roots, each sum in order."""
    corners = values[faces[chosen]]
    return corners[:, 0] * weights[:, 0:1] + corners[:, 1] * weights[:, 1:2] + corners[:, 2] * weights[:, 2:3]


def locks_of(
    style: Style,
    hairline: Hairline,
    base: NDArray[np.float32],
    shape: NDArray[np.float32],
    normals: NDArray[np.float32],
    faces: NDArray[np.int32],
    areas: NDArray[np.float64],
    angle: NDArray[np.float64],
    *key: int,
) -> Locks:
    """The locks of a style on a head.

    Args:
        style, hairline: of the person.
        base: [V, 3] the base mesh. shape: [V, 3] the person's head. normals: [V, 3] its.
        faces: [F, 3] of the skin. areas: [F] theirs on the base mesh. angle: [V] around the head.
        key: integers that the locks' own ways follow from.
    """
    count = int(style.count)
    above = hairline.above(angle, base[:, 1].astype(np.float64))
    weight = (above[faces].min(1) > 0).astype(np.float64)
    chosen, corners = rooted(areas, weight, count, *key)
    roots = at_roots(shape, faces, chosen, corners)
    of_base = at_roots(base, faces, chosen, corners)
    outward = at_roots(normals, faces, chosen, corners)
    turn = np.abs(at_roots(np.abs(angle)[:, None].astype(np.float32), faces, chosen, corners)[:, 0])
    over = at_roots(above[:, None].astype(np.float32), faces, chosen, corners)[:, 0]
    lots = uniform(hash64(*key, 1, np.arange(count)[:, None], np.arange(8))).astype(np.float32)
    centre, radii = ellipsoid(base, shape)
    x = of_base[:, 0] / 0.7
    away = np.clip((x - style.part) * 6, -1, 1)
    is_top, is_front = smooth((of_base[:, 1] - 7.75) / 0.3), (turn < 0.5) & (over < 0.35)
    is_back = smooth((turn - 1.05) / 0.3)
    length = style.side + is_top * (style.top - style.side)
    length = length + is_back * (1 - is_top) * (style.back - length)
    comb = np.zeros((count, 3), np.float32)
    comb[:, 0] = style.sideways * away
    comb[:, 1] = -style.down * np.where(turn > 0.5, 1, 0.2) - 0.4 * (1 - is_top)
    comb[:, 2] = style.forwards - style.backwards - 0.5 * is_back * (style.forwards > 0)
    fringe = is_front & (style.fringe > 0) & (np.abs(x) < 0.85)
    reach = np.maximum(of_base[:, 1] - (7.95 - 0.48 * style.fringe), 0.05) * 1.15
    length = np.where(fringe, np.minimum(length, reach), length)
    comb[fringe] = np.stack([0.35 * style.sideways * away, np.full(len(x), -0.8), np.full(len(x), 0.6)], 1)[fringe]
    clear = np.where(fringe, 0.0, style.clear).astype(np.float32) * radii[0] / np.float32(0.76)
    points = grown(
        roots.astype(np.float32),
        outward.astype(np.float32),
        comb,
        (length * (0.8 + 0.4 * lots[:, 0])).astype(np.float32),
        (style.lift * (0.5 + lots[:, 1]) * np.where(fringe, 0.5, 1)).astype(np.float32),
        np.full(count, style.fall, np.float32),
        clear.astype(np.float32),
        lots[:, 2].copy(),
        ((2 * lots[:, 3:6] - 1) * np.float32(style.frizz)).astype(np.float32),
        style.curl,
        style.turns,
        style.volume,
        centre,
        radii,
        0.7 * style.part,
        sines(),
    )
    # Hair that is no fringe and has come before the face is pushed back: one lock in fifty stays.
    before = (
        (points[:, :, 2] > centre[2] + 0.3) & (np.abs(points[:, :, 0]) < 0.5) & (points[:, :, 1] < centre[1] + 0.38)
    )
    kept = fringe | ~before.any(1) | (lots[:, 7] > 0.98)
    width = (style.width * (0.6 + 0.8 * lots[:, 6])).astype(np.float32)
    return Locks(points, width, lots[:, 7].copy(), faces[chosen, 0].astype(np.int64)).only(kept)


def ellipsoid(base: NDArray[np.float32], shape: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[3] the middle and [3] the radii of the upper head."""
    upper = shape[(base[:, 1] > 7.4) & (base[:, 1] < 8.6)]
    temples = shape[(base[:, 1] > 7.6) & (base[:, 1] < 8.2)]
    top, back, front = upper[:, 1].max(), upper[:, 2].min(), temples[:, 2].max()
    wide = np.abs(temples[:, 0]).max()
    centre = np.array([0.0, top - 1.08, (front + back) / 2], np.float32)
    return centre, np.array([wide, 1.08, (front - back) / 2], np.float32)
