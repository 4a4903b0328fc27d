"""Painting of skin on the map of the head, point by point: colour, relief, brows, lips, beard and marks."""

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.compiling import compiled

# The numbers of `paint`, by their places; lengths in decimetres.
FIELDS = (
    "redness",
    "blotches",
    "pores",
    "freckles",
    "circles",
    "wrinkles",
    "brow_gap",
    "brow_length",
    "brow_height",
    "brow_arch",
    "brow_peak",
    "brow_tilt",
    "brow_thickness",
    "brow_density",
    "lip_fullness",
    "moustache",
    "goatee",
    "jaw_beard",
    "sideburns",
    "beard_density",
    "beard_line",
    "shadow",
    "liner",
    "blush",
)
(
    REDNESS,
    BLOTCHES,
    PORES,
    FRECKLES,
    CIRCLES,
    WRINKLES,
    BROW_GAP,
    BROW_LENGTH,
    BROW_HEIGHT,
    BROW_ARCH,
    BROW_PEAK,
    BROW_TILT,
    BROW_THICKNESS,
    BROW_DENSITY,
    LIP_FULLNESS,
    MOUSTACHE,
    GOATEE,
    JAW_BEARD,
    SIDEBURNS,
    BEARD_DENSITY,
    BEARD_LINE,
    SHADOW,
    LINER,
    BLUSH,
) = range(24)


@compiled
def noise_at(lattice: NDArray[np.float32], x: float, y: float, z: float) -> float:
    """Smooth noise from -1 to 1, one cell of the lattice a unit."""
    fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
    i, j, k = int(fx) & 31, int(fy) & 31, int(fz) & 31
    x, y, z = x - fx, y - fy, z - fz
    x, y, z = x * x * (3 - 2 * x), y * y * (3 - 2 * y), z * z * (3 - 2 * z)
    i1, j1, k1 = (i + 1) & 31, (j + 1) & 31, (k + 1) & 31
    a = lattice[i, j, k] + x * (lattice[i1, j, k] - lattice[i, j, k])
    b = lattice[i, j1, k] + x * (lattice[i1, j1, k] - lattice[i, j1, k])
    c = lattice[i, j, k1] + x * (lattice[i1, j, k1] - lattice[i, j, k1])
    d = lattice[i, j1, k1] + x * (lattice[i1, j1, k1] - lattice[i, j1, k1])
    a, c = a + y * (b - a), c + y * (d - c)
    return a + z * (c - a)


@compiled
def bump(x: float, low: float, high: float) -> float:
    """From 0 at `low` to 1 at `high`, smoothly; `low` may be the larger."""
    over, span = x - low, high - low
    if span < 0:
        over, span = -over, -span
    # Most points are on one side or the other, and a division is slow.
    if over <= 0:
        return 0.0
    if over >= span:
        return 1.0
    t = over / span
    return t * t * (3 - 2 * t)


@compiled
def brow_at(x: float, y: float, n: NDArray[np.float32], wobble: float) -> float:
    """How much a point of the face is in a brow, 0 to 1; `n` as FIELDS."""
    gap, length, height, arch, peak, tilt, thickness = (
        n[BROW_GAP],
        n[BROW_LENGTH],
        n[BROW_HEIGHT],
        n[BROW_ARCH],
        n[BROW_PEAK],
        n[BROW_TILT],
        n[BROW_THICKNESS],
    )
    t = (x - gap) / length
    if t < -0.12 or t > 1.1:
        return 0.0
    rise = t / peak if t < peak else (1 - t) / (1 - peak)
    middle = 7.284 + height + arch * (rise * (2 - rise) - 0.6) + tilt * (t - 0.4)
    wide = thickness * (1 - 0.75 * bump(t, 0.45, 1.05)) * (0.8 + 0.2 * bump(t, -0.1, 0.2))
    off = abs(y - middle - 0.012 * wobble) / wide
    return bump(off, 1.25, 0.55) * bump(t, -0.1, 0.08) * bump(t, 1.08, 0.85)


@compiled
def beard_at(x: float, y: float, z: float, n: NDArray[np.float32], wobble: float) -> float:
    """How much beard grows at a point of the face, 0 to 1; `n` as FIELDS."""
    moustache, goatee, jaw, sideburns, line = n[MOUSTACHE], n[GOATEE], n[JAW_BEARD], n[SIDEBURNS], n[BEARD_LINE]
    edge = 0.03 * wobble
    found = (
        moustache * bump(y + edge, 6.655, 6.69) * bump(y + edge, 6.81 - 0.25 * x, 6.76 - 0.25 * x) * bump(x, 0.36, 0.28)
    )
    below = bump(y + edge, 6.60, 6.55) * bump(z, 1.05, 1.2)
    found = max(found, goatee * below * bump(x + edge, 0.34, 0.27) * bump(y, 6.0, 6.12))
    found = max(
        found, goatee * moustache * bump(abs(x - 0.32) + edge, 0.075, 0.03) * bump(y, 6.76, 6.70) * bump(z, 1.0, 1.1)
    )
    cheek = line + 0.75 * max(0.0, x - 0.30) + 0.5 * max(0.0, x - 0.55)
    found = max(found, jaw * bump(y + 2 * edge, cheek, cheek - 0.10) * bump(z, 0.42, 0.6) * bump(y, 5.98, 6.12))
    return max(
        found,
        sideburns
        * bump(x, 0.58, 0.64)
        * bump(z, 0.55, 0.68)
        * bump(z, 1.0, 0.88)
        * bump(y, 7.45, 7.3)
        * bump(y, 6.7, 6.8),
    )


@compiled
def wrinkles_at(x: float, y: float, z: float, low: float, high: float) -> float:
    """How deep a wrinkle is at a point of the face, 0 to 1; `low` and `high` are slow and quick noise."""
    found = 0.0  # each kind is where it can be, and looked for nowhere else
    if 7.52 < y < 8.0 and x < 0.6:
        forehead = (y + 0.05 * low + 0.02 * high - 0.04 * x) * 8.5
        wave = abs(forehead - np.floor(forehead) - 0.5) * 2
        found = (
            bump(wave, 0.22, 0.0)
            * bump(y, 7.52, 7.62)
            * bump(y, 8.0, 7.9)
            * bump(x, 0.6, 0.4)
            * bump(low + 0.4, 0, 0.6)
        )
    # Between the brows.
    if 7.36 < y < 7.6 and x < 0.15:
        frown = bump(abs(x - 0.075 - 0.02 * low), 0.025, 0.0)
        found = max(found, frown * bump(y, 7.36, 7.42) * bump(y, 7.6, 7.52) * 0.8)
    # Crow's feet: rays from the outer corner of the eye.
    dx, dy = x - 0.46, y - 7.27
    if 0 < dx < 0.24 and abs(dy) < 0.15:
        ray = dy / (dx + 0.12) * 5 + 0.5 * low
        side = abs(ray - np.floor(ray) - 0.5) * 2
        found = max(
            found, bump(side, 0.4, 0.0) * bump(dx, 0.03, 0.08) * bump(dx, 0.22, 0.12) * bump(abs(dy), 0.15, 0.08)
        )
    # Bags under the eye.
    if abs(x - 0.30) < 0.2:
        under = abs(y - (7.13 + 0.35 * (x - 0.31) * (x - 0.31) * 4) + 0.015 * low)
        found = max(found, 0.8 * bump(under, 0.022, 0.0) * bump(abs(x - 0.30), 0.2, 0.12))
    # From the wings of the nose past the corners of the mouth.
    if 6.46 < y < 6.96 and z > 0.9:
        fold = abs(x - (0.21 + 0.30 * (6.93 - y) + 0.02 * low))
        found = max(found, bump(fold, 0.03, 0.0) * bump(y, 6.46, 6.6) * bump(y, 6.96, 6.88) * bump(z, 0.9, 1.1))
    return found


@compiled
def paint(
    positions: NDArray[np.float32],
    masks: NDArray[np.float32],
    growth: NDArray[np.float32],
    lattice: NDArray[np.float32],
    colours: NDArray[np.float32],
    n: NDArray[np.float32],
    marks: NDArray[np.float32],
    offset: NDArray[np.float32],
) -> NDArray[np.float32]:
    """As `painted`, of arrays: `n` holds the numbers of FIELDS."""
    rows, columns = growth.shape
    out = np.empty((rows, columns, 5), np.float32)
    for row in range(rows):
        for column in range(columns):
            x, y, z = positions[row, column, 0], positions[row, column, 1], positions[row, column, 2]
            lips, lids = masks[row, column, 0], masks[row, column, 1]
            px, py, pz = x + offset[0], y + offset[1], z + offset[2]
            side = abs(x)
            front = bump(z, 0.6, 1.1)
            if z < 0.25:  # behind the ears nothing but hair and plain skin
                part = growth[row, column] * 0.9
                for k in range(3):
                    out[row, column, k] = colours[0, k] + part * (colours[2, k] - colours[0, k])
                out[row, column, 3], out[row, column, 4] = 0.3, 0.0
                continue
            if growth[row, column] > 0.98:  # under hair
                part = min(1.0, max(0.0, 0.85 + 0.5 * noise_at(lattice, px * 70, py * 25, pz * 70)))
                for k in range(3):
                    out[row, column, k] = colours[0, k] + part * (colours[2, k] - colours[0, k])
                out[row, column, 3], out[row, column, 4] = 0.2, 0.0
                continue
            low = noise_at(lattice, px * 3, py * 3, pz * 3)
            middle = noise_at(lattice, px * 11, py * 11, pz * 11)
            fine = noise_at(lattice, px * 45, py * 45, pz * 45)
            # Blood near the surface of cheeks, nose and ears; little of it on the forehead.
            red = (
                bump(abs(y - 6.95) + 0.6 * abs(side - 0.38), 0.4, 0.05) * front
                + 0.9 * bump(side, 0.12, 0.04) * bump(abs(y - 6.9), 0.16, 0.06) * front
            )
            red = (
                n[REDNESS] * (red + 0.25 * low + bump(side, 0.72, 0.8) * 0.6)
                + n[BLUSH] * bump(abs(y - 6.98) + abs(side - 0.5), 0.28, 0.05) * front
            )
            light = 1 + n[BLOTCHES] * (0.10 * low + 0.06 * middle) + n[PORES] * 0.07 * fine
            light *= (
                1 - n[CIRCLES] * 0.25 * bump(abs(y - 7.16) * 1.3 + abs(side - 0.28), 0.24, 0.06) * front
            )  # circles under the eyes
            wrinkle = n[WRINKLES] * wrinkles_at(side, y, z, low, middle)
            light *= 1 - 0.26 * wrinkle
            r = colours[0, 0] * light * (1 + 0.06 * red)
            g = colours[0, 1] * light * (1 - 0.14 * red)
            b = colours[0, 2] * light * (1 - 0.16 * red)
            oil = 0.35 + 0.35 * bump(side, 0.3, 0.05) * front + 0.12 * fine
            # Freckles: one in some cells of a grid.
            if n[FRECKLES] > 0:
                where = n[FRECKLES] * (bump(abs(y - 7.02), 0.45, 0.1) * front * 0.9 + 0.1)
                spot = bump(
                    noise_at(lattice, px * 44 + 9, py * 44, pz * 44) + 0.5 * middle,
                    0.75 - 0.65 * where,
                    0.95 - 0.5 * where,
                )
                r, g, b = r * (1 - 0.20 * spot * where), g * (1 - 0.32 * spot * where), b * (1 - 0.38 * spot * where)
            # Lips, with the line between them.
            mouth = bump(lips, 0.35, 0.75)
            if mouth > 0:
                part = mouth * n[LIP_FULLNESS]
                grain = 1 + 0.10 * noise_at(lattice, px * 40, py * 6, pz * 40)
                r += part * (colours[1, 0] * grain - r)
                g += part * (colours[1, 1] * grain - g)
                b += part * (colours[1, 2] * grain - b)
                oil += 0.4 * mouth
            # Make-up: shadow on the lid and above it, a line along the lashes.
            if n[SHADOW] > 0:
                part = n[SHADOW] * max(lids, bump(abs(y - 7.37) * 1.4 + abs(side - 0.33), 0.2, 0.06)) * front
                r, g, b = r + part * (colours[4, 0] - r), g + part * (colours[4, 1] - g), b + part * (colours[4, 2] - b)
            if n[LINER] > 0:
                part = (
                    1
                    - n[LINER]
                    * bump(abs(y - 7.29 - 0.1 * max(0.0, side - 0.4)), 0.05, 0.015)
                    * bump(abs(side - 0.34), 0.2, 0.15)
                    * front
                )
                r, g, b = r * part, g * part, b * part
            height = 0.25 * fine + 0.5 * middle * 0.3 - 1.2 * wrinkle
            # Brows and beard, as single hairs where they are thin.
            brow = brow_at(side, y, n, low) * front
            if brow > 0:
                brow *= n[BROW_DENSITY] * min(
                    1.0, max(0.0, 0.85 + 0.7 * noise_at(lattice, px * 55 + 20 * py, py * 38, pz * 20))
                )
            beard = n[BEARD_DENSITY] * beard_at(side, y, z, n, low) * (1 - mouth)
            hairs = 0.0
            if beard > 0 or growth[row, column] > 0:
                hairs = noise_at(lattice, px * 70, py * 25, pz * 70)
            beard *= min(1.0, max(0.0, 0.55 + 0.8 * hairs + 0.5 * n[BEARD_DENSITY]))
            scalp = growth[row, column] * min(1.0, max(0.0, 0.85 + 0.5 * hairs))
            for kind, part in ((3, brow), (2, beard), (2, scalp)):
                r += part * (colours[kind, 0] - r)
                g += part * (colours[kind, 1] - g)
                b += part * (colours[kind, 2] - b)
                oil *= 1 - 0.8 * part
            out[row, column, 0], out[row, column, 1], out[row, column, 2] = r, g, b
            out[row, column, 3] = min(max(oil, 0.0), 1.0)
            out[row, column, 4] = height
    # Moles and scars are few: drawn one by one, on the whole of the front.
    for mark in range(marks.shape[0]):
        for row in range(rows):
            for column in range(columns // 4, columns * 3 // 4):
                x, y, z = positions[row, column, 0], positions[row, column, 1], positions[row, column, 2]
                if abs(y - marks[mark, 1]) < marks[mark, 2] and z > 0.3:
                    dx, dy = x - marks[mark, 0], y - marks[mark, 1]
                    part = marks[mark, 3] * bump(np.sqrt(dx * dx + dy * dy), marks[mark, 2], 0.5 * marks[mark, 2])
                    out[row, column, 0] *= 1 - 0.85 * part
                    out[row, column, 1] *= 1 - part
                    out[row, column, 2] *= 1 - part
    return out
