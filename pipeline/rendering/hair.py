"""Hair of the head: hairlines, styles and colours, and the locks that they make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.hashing import hash64, uniform
from pipeline.rendering.chart import BOTTOM, COLUMNS, ROWS, TOP
from pipeline.rendering.draws import Draws
from pipeline.rendering.strands import Locks, grown, sines

Colour = tuple[float, float, float]

# Linear reflectance; grey and white come with age.
COLOURS: dict[str, Colour] = {
    "black": (0.012, 0.010, 0.009), "dark brown": (0.035, 0.022, 0.015), "brown": (0.085, 0.048, 0.027),
    "light brown": (0.18, 0.105, 0.055), "blond": (0.43, 0.25, 0.12), "light blond": (0.62, 0.45, 0.27),
    "red": (0.30, 0.095, 0.03), "auburn": (0.13, 0.038, 0.02), "grey": (0.27, 0.265, 0.27), "white": (0.62, 0.60, 0.57),
}  # fmt: skip
NATURAL = {
    "african": ((0.80, 0.17, 0.02, 0.004, 0.002, 0.002, 0.001, 0.001)),
    "asian": ((0.72, 0.22, 0.04, 0.01, 0.004, 0.002, 0.002, 0.002)),
    "caucasian": ((0.08, 0.27, 0.26, 0.15, 0.12, 0.05, 0.04, 0.03)),
}

# |angle| around the head (0 in front, 1 at the ear, 2 behind) -> height of the hairline in decimetres.
_ANGLES = (0.0, 0.2, 0.38, 0.52, 0.62, 0.72, 0.82, 0.90, 1.02, 1.18, 1.35, 2.0)


@dataclass(frozen=True)
class Style:
    """How hair is worn. Lengths in decimetres; the rest are weights, about 1."""

    name: str
    top: float
    side: float
    back: float
    fringe: float = 0.0  # how far down the forehead hair of the front hangs: 0 not at all, 1 to the brows
    part: float = 0.0  # where it is parted, from -1 to 1
    sideways: float = 0.0  # how it is combed: away from the parting, back, to the front, down
    backwards: float = 0.0
    forwards: float = 0.0
    down: float = 0.0
    lift: float = 0.6
    fall: float = 0.5
    curl: float = 0.0
    turns: float = 2.0
    volume: float = 0.06
    frizz: float = 0.12
    thickness: float = 0.05  # of the layer under the locks
    count: int = 1200
    width: float = 0.036
    clear: float = 0.62


@dataclass(frozen=True)
class Hairline:
    """Where hair grows: heights [12] at `_ANGLES`."""

    heights: tuple[float, ...]

    def above(self, angle: NDArray[np.float64], height: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far above the hairline points are, in decimetres, for angles in [-2, 2]."""
        at = np.abs(angle)
        line = np.full(at.shape, self.heights[-1])
        for k in range(len(_ANGLES) - 1):
            low, high = _ANGLES[k], _ANGLES[k + 1]
            here = (at >= low) & (at < high)
            part = (at - low) / (high - low)
            line = np.where(here, self.heights[k] + part * (self.heights[k + 1] - self.heights[k]), line)
        return height - line


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
        front - peak, front, front + temple * 0.7, front - 0.06 + temple, 7.76 + 0.8 * temple + side, 7.52 + 0.3 * temple + side,
        7.25 + side, burns, 7.25, 7.0, 6.85, nape,
    )  # fmt: skip
    return Hairline(tuple(min(height, 8.4) for height in heights))


def growth(hairline: Hairline, wobble: NDArray[np.float32]) -> NDArray[np.float32]:
    """[ROWS, COLUMNS] where hair grows on the map, 0 to 1; `wobble` [ROWS, COLUMNS] makes the line uneven."""
    angle = (np.arange(COLUMNS) + 0.5) / COLUMNS * 4 - 2
    height = TOP - (np.arange(ROWS) + 0.5) / ROWS * (TOP - BOTTOM)
    above = hairline.above(*np.broadcast_arrays(angle[None, :], height[:, None])) + 0.05 * wobble
    return smooth((above + 0.03) / 0.10).astype(np.float32)


def smooth(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 0 at 0 to 1 at 1, smoothly."""
    t = np.clip(x, 0, 1)
    return t * t * (3 - 2 * t)


def drawn_style(draws: Draws, sex: str, ancestry: str, age: float) -> Style:
    """A style that a person may wear."""
    straight = draws.chance({"african": 0.15, "asian": 0.85, "caucasian": 0.6}[ancestry])
    curl = 0.0 if straight else draws.uniform(0.015, 0.06)
    u = draws.uniform
    if sex == "male":
        names = ("bald", "buzz", "short", "parted", "back", "fringe", "tousled", "afro", "long", "undercut")
        old = max(0.0, (age - 35) / 40)
        shares = [0.03 + 0.25 * old, 0.10, 0.22, 0.18, 0.13, 0.10, 0.14, 0.0, 0.05, 0.05]
        if ancestry == "african":
            shares = [0.12 + 0.2 * old, 0.40, 0.14, 0.0, 0.02, 0.0, 0.02, 0.20, 0.07, 0.02]
    else:
        names = ("straight", "waves", "bob", "fringed", "tied", "pixie", "afro", "curls", "parted long", "buzz")
        shares = [0.2, 0.2, 0.13, 0.14, 0.15, 0.06, 0.0, 0.06, 0.14, 0.004]
        if ancestry == "african":
            shares = [0.12, 0.12, 0.07, 0.07, 0.2, 0.03, 0.2, 0.16, 0.08, 0.05]
    name = draws.choice(names, shares)
    part = draws.choice((-1.0, 1.0)) * u(0.25, 0.55)
    if name == "bald":
        return Style(name, 0, 0, 0, count=0, thickness=0)
    if name == "buzz":
        return Style(name, 0, 0, 0, count=0, thickness=u(0.004, 0.02))
    if name == "short":
        length = u(0.15, 0.4)
        return Style(name, length, 0.6 * length, 0.6 * length, forwards=u(-0.2, 0.7), down=0.4, lift=u(0.5, 1.4), fall=0.1,
                     curl=0.6 * curl, turns=2, frizz=0.3, thickness=u(0.02, 0.05), count=1500, width=0.028)  # fmt: skip
    if name == "parted":
        return Style(name, u(0.6, 1.0), u(0.2, 0.4), 0.3, part=part, sideways=1, backwards=u(0, 0.6), lift=u(0.3, 1.0), fall=0.25,
                     curl=0.4 * curl, volume=u(0.03, 0.14), thickness=0.05)  # fmt: skip
    if name == "back":
        return Style(name, u(0.6, 1.3), u(0.3, 0.5), 0.5, backwards=1, sideways=0.2, part=part, lift=u(0.2, 1.3), fall=0.1,
                     curl=0.4 * curl, volume=u(0.03, 0.18), frizz=0.08, thickness=0.05)  # fmt: skip
    if name == "fringe":
        return Style(name, u(0.5, 0.9), u(0.3, 0.6), 0.4, fringe=u(0.3, 0.95), forwards=1, down=0.5, sideways=u(0, 0.5), part=part,
                     lift=0.4, fall=0.35, curl=0.3 * curl, volume=u(0.05, 0.12), thickness=0.07)  # fmt: skip
    if name == "tousled":
        return Style(name, u(0.5, 1.0), u(0.3, 0.6), 0.5, fringe=u(0.0, 0.5), forwards=u(-0.3, 0.6), sideways=u(0, 0.6), part=part,
                     lift=u(0.8, 1.6), fall=0.25, curl=max(curl, 0.02), turns=1.5, frizz=0.5, volume=u(0.1, 0.25), thickness=0.1)  # fmt: skip
    if name == "undercut":
        return Style(name, u(0.7, 1.2), 0.05, 0.05, backwards=u(0, 1), sideways=1, part=part * 1.4, lift=u(0.4, 1.3), fall=0.2,
                     volume=u(0.06, 0.2), thickness=0.03)  # fmt: skip
    if name == "afro":
        length = u(0.25, 0.9)
        return Style(name, length, 0.85 * length, 0.9 * length, lift=4, fall=0, curl=u(0.025, 0.05), turns=u(3, 5), frizz=0.5,
                     volume=0.6 * length, thickness=0.75 * length, count=1500, width=0.04, clear=0.0)  # fmt: skip
    if name == "pixie":
        return Style(name, u(0.5, 0.8), u(0.4, 0.6), 0.5, fringe=u(0.2, 0.8), forwards=0.7, sideways=0.7, part=part, lift=0.5, fall=0.3,
                     curl=0.3 * curl, volume=0.1, thickness=0.07)  # fmt: skip
    if name == "tied":
        return Style(name, u(0.9, 1.3), u(0.9, 1.2), 0.6, backwards=1.2, sideways=0.1, part=part, lift=0.15, fall=0.05, frizz=0.05,
                     volume=0.02, thickness=0.035, fringe=draws.choice((0.0, 0.0, 0.7)), curl=0.2 * curl)  # fmt: skip
    if name == "curls":
        return Style(name, u(1.2, 2.4), u(1.2, 2.4), 1.6, sideways=0.8, part=part * u(0, 1), down=0.5, lift=u(1, 2), fall=0.5,
                     curl=u(0.05, 0.09), turns=u(3, 6), frizz=0.5, volume=u(0.25, 0.5), thickness=0.18, count=1000, width=0.05)  # fmt: skip
    if name == "bob":
        return Style(name, u(1.4, 1.8), u(1.0, 1.4), 1.1, sideways=1, part=part * u(0, 1), down=0.6, lift=0.5, fall=0.9, curl=0.3 * curl,
                     fringe=draws.choice((0.0, 0.0, 0.9)), volume=u(0.1, 0.24), thickness=0.1, count=1000, width=0.05, clear=u(0.5, 0.66))  # fmt: skip
    length = u(1.8, 3.0)
    fringe = u(0.75, 1.05) if name == "fringed" else 0.0
    middle = 0.1 if name == "straight" else 1.0
    waves = max(curl, 0.03) if name == "waves" else 0.5 * curl
    return Style(name, length, length, length, fringe=fringe, part=part * middle, sideways=0.8, down=1.0, backwards=u(-0.1, 0.4),
                 lift=u(0.1, 0.5), fall=1.3, curl=waves, turns=u(1, 2.5), volume=u(0.03, 0.16), thickness=u(0.04, 0.12), count=950,
                 width=0.058, clear=u(0.52, 0.7))  # fmt: skip


def rooted(
    mesh: NDArray[np.float32], faces: NDArray[np.int32], weight: NDArray[np.float64], count: int, *key: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Roots spread over a surface: [count] faces and [count, 3] weights of their corners, denser where `weight` [F] is."""
    a, b, c = (mesh[faces[:, k]].astype(np.float64) for k in range(3))
    u, v = b - a, c - a
    x = u[:, 1] * v[:, 2] - u[:, 2] * v[:, 1]
    y = u[:, 2] * v[:, 0] - u[:, 0] * v[:, 2]
    z = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    until = np.cumsum(np.sqrt(x * x + y * y + z * z) * weight)
    lots = uniform(hash64(*key, np.arange(count)[:, None], np.arange(3)))
    chosen = np.searchsorted(until, (np.arange(count) + lots[:, 0]) / max(count, 1) * until[-1])
    s, t = lots[:, 1], lots[:, 2]
    over = s + t > 1
    s, t = np.where(over, 1 - s, s), np.where(over, 1 - t, t)
    return np.minimum(chosen, len(faces) - 1), np.stack([1 - s - t, s, t], 1).astype(np.float32)


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
    angle: NDArray[np.float64],
    *key: int,
) -> Locks:
    """The locks of a style on a head.

    Args:
        style, hairline: of the person.
        base: [V, 3] the base mesh. shape: [V, 3] the person's head. normals: [V, 3] its.
        faces: [F, 3] of the skin. angle: [V] around the head.
        key: integers that the locks' own ways follow from.
    """
    above = hairline.above(angle, base[:, 1].astype(np.float64))
    weight = (above[faces].min(1) > 0).astype(np.float64)
    chosen, corners = rooted(base, faces, weight, style.count, *key)
    roots = at_roots(shape, faces, chosen, corners)
    of_base = at_roots(base, faces, chosen, corners)
    outward = at_roots(normals, faces, chosen, corners)
    turn = np.abs(at_roots(np.abs(angle)[:, None].astype(np.float32), faces, chosen, corners)[:, 0])
    over = at_roots(above[:, None].astype(np.float32), faces, chosen, corners)[:, 0]
    lots = uniform(hash64(*key, 1, np.arange(style.count)[:, None], np.arange(8))).astype(np.float32)
    centre, radii = ellipsoid(base, shape)
    x = of_base[:, 0] / 0.7
    away = np.clip((x - style.part) * 6, -1, 1)
    is_top, is_front = smooth((of_base[:, 1] - 7.75) / 0.3), (turn < 0.5) & (over < 0.35)
    is_back = smooth((turn - 1.05) / 0.3)
    length = style.side + is_top * (style.top - style.side)
    length = length + is_back * (1 - is_top) * (style.back - length)
    comb = np.zeros((style.count, 3), np.float32)
    comb[:, 0] = style.sideways * away
    comb[:, 1] = -style.down * np.where(turn > 0.5, 1, 0.2) - 0.4 * (1 - is_top)
    comb[:, 2] = style.forwards - style.backwards - 0.5 * is_back * (style.forwards > 0)
    fringe = is_front & (style.fringe > 0) & (np.abs(x) < 0.85)
    reach = np.maximum(of_base[:, 1] - (7.95 - 0.48 * style.fringe), 0.05) * 1.15
    length = np.where(fringe, np.minimum(length, reach), length)
    comb[fringe] = np.stack([0.35 * style.sideways * away, np.full(len(x), -0.8), np.full(len(x), 0.6)], 1)[fringe]
    clear = np.where(fringe, 0.0, style.clear).astype(np.float32) * radii[0] / np.float32(0.76)
    points = grown(
        roots.astype(np.float32), outward.astype(np.float32), comb,
        (length * (0.8 + 0.4 * lots[:, 0])).astype(np.float32),
        (style.lift * (0.5 + lots[:, 1]) * np.where(fringe, 0.5, 1)).astype(np.float32),
        np.full(style.count, style.fall, np.float32), clear.astype(np.float32), lots[:, 2].copy(),
        ((2 * lots[:, 3:6] - 1) * np.float32(style.frizz)).astype(np.float32),
        style.curl, style.turns, style.volume, centre, radii, 0.7 * style.part, sines(),
    )  # fmt: skip
    return Locks(points, (style.width * (0.6 + 0.8 * lots[:, 6])).astype(np.float32), lots[:, 7].copy(), faces[chosen, 0].astype(np.int64))


def ellipsoid(base: NDArray[np.float32], shape: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[3] the middle and [3] the radii of the upper head."""
    upper = shape[(base[:, 1] > 7.4) & (base[:, 1] < 8.6)]
    temples = shape[(base[:, 1] > 7.6) & (base[:, 1] < 8.2)]
    top, back, front = upper[:, 1].max(), upper[:, 2].min(), temples[:, 2].max()
    wide = np.abs(temples[:, 0]).max()
    centre = np.array([0.0, top - 1.08, (front + back) / 2], np.float32)
    return centre, np.array([wide, 1.08, (front - back) / 2], np.float32)
