"""Triangles to pixels in whole numbers: which triangle is nearest at each pixel, and where in it the pixel lies."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.compiling import compiled

STEPS = 256  # a pixel has so many steps a side; corners lie on whole steps
NOTHING = -1
_TILE = 8  # pixels of a tile a side
_SHIFT = 11  # the steps of a tile a side are 2 to the power of this
_BINS = 128  # counts of triangles by nearness, from which the parts are cut


@compiled
def inside(edge: int, step: int, over: float, last: int) -> tuple[int, int]:
    """The first and the last of the pixels 0 to `last` of a row at which `edge` + k * `step` is not negative.

    A float, by `over`, 1 / `step`, says where that is to one pixel; whole numbers say the rest.
    """
    k = int(-edge * over)
    if step > 0:
        k = max(k, 0)
        k += edge + k * step < 0
        return k, last
    if step < 0:
        k = min(k, last)
        k -= edge + k * step < 0
        k += edge + (k + 1) * step >= 0
        return 0, min(k, last)
    return 0, last if edge >= 0 else -1


@compiled
def rasterise(
    corners: NDArray[np.int32],
    nearness: NDArray[np.float32],
    faces: NDArray[np.int32],
    chosen: NDArray[np.int64],
    two_sided: bool,
    face_at: NDArray[np.int32],
    weight_at: NDArray[np.float32],
    near_at: NDArray[np.float32],
) -> None:
    """Draw triangles over what `face_at` [H, W], `weight_at` [H, W, 2] and `near_at` [H, W] hold.

    A pixel belongs to a triangle if its centre does, by edge functions of whole numbers and the top-left rule: two
    triangles with one edge share no pixel and leave none out. Weights are of the second and the third corner.

    Args:
        corners: [V, 2] x and y in steps; pixel (i, j)'s centre is at (i * STEPS, j * STEPS).
        nearness: [V] larger is nearer, and linear on the screen (one over the distance).
        faces: [F, 3] corners, counterclockwise as seen, with y down.
        chosen: numbers of the faces to draw.
        two_sided: whether faces seen from behind are drawn.
    """
    height, width = face_at.shape
    limit_x, limit_y = STEPS * (width - 1), STEPS * (height - 1)
    for face in chosen:
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay = int(corners[a, 0]), int(corners[a, 1])
        bx, by = int(corners[b, 0]), int(corners[b, 1])
        cx, cy = int(corners[c, 0]), int(corners[c, 1])
        if max(ax, bx, cx) < 0 or max(ay, by, cy) < 0 or min(ax, bx, cx) > limit_x or min(ay, by, cy) > limit_y:
            continue
        # Negative for a face that is counterclockwise as seen, since y goes down.
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0 or (area > 0 and not two_sided):
            continue
        sign = 1 if area > 0 else -1
        left = max(0, -((-min(ax, bx, cx)) // STEPS))
        right = min(width - 1, max(ax, bx, cx) // STEPS)
        top = max(0, -((-min(ay, by, cy)) // STEPS))
        bottom = min(height - 1, max(ay, by, cy) // STEPS)
        if left > right or top > bottom:
            continue
        # Edge functions, positive inside; each edge's steps for a pixel to the right and a pixel down.
        abx, aby = sign * (by - ay) * -STEPS, sign * (bx - ax) * STEPS
        bcx, bcy = sign * (cy - by) * -STEPS, sign * (cx - bx) * STEPS
        cax, cay = sign * (ay - cy) * -STEPS, sign * (ax - cx) * STEPS
        x, y = left * STEPS, top * STEPS
        ab = sign * ((bx - ax) * (y - ay) - (by - ay) * (x - ax))
        bc = sign * ((cx - bx) * (y - by) - (cy - by) * (x - bx))
        ca = sign * ((ax - cx) * (y - cy) - (ay - cy) * (x - cx))
        # A centre on an edge counts as inside for a top or a left edge only: others ask for one more.
        ab_edge = 0 if abx > 0 or (abx == 0 and aby > 0) else 1
        bc_edge = 0 if bcx > 0 or (bcx == 0 and bcy > 0) else 1
        ca_edge = 0 if cax > 0 or (cax == 0 and cay > 0) else 1
        scale = np.float32(1) / np.float32(sign * area)
        near_a, near_b, near_c = nearness[a], nearness[b], nearness[c]
        over_ab = 1.0 / abx if abx != 0 else 0.0
        over_bc = 1.0 / bcx if bcx != 0 else 0.0
        over_ca = 1.0 / cax if cax != 0 else 0.0
        for row in range(top, bottom + 1):
            first_ab, last_ab = inside(ab - ab_edge, abx, over_ab, right - left)
            first_bc, last_bc = inside(bc - bc_edge, bcx, over_bc, right - left)
            first_ca, last_ca = inside(ca - ca_edge, cax, over_ca, right - left)
            first, last = max(0, first_ab, first_bc, first_ca), min(last_ab, last_bc, last_ca)
            for k in range(first, last + 1):
                of_b, of_c = np.float32(ca + k * cax) * scale, np.float32(ab + k * abx) * scale
                near = near_a + of_b * (near_b - near_a) + of_c * (near_c - near_a)
                column = left + k
                if near >= near_at[row, column] and (near > near_at[row, column] or face < face_at[row, column]):
                    near_at[row, column] = near
                    face_at[row, column] = face
                    weight_at[row, column, 0] = of_b
                    weight_at[row, column, 1] = of_c
            ab += aby
            bc += bcy
            ca += cay


@compiled
def not_hidden(
    corners: NDArray[np.int32],
    nearness: NDArray[np.float32],
    faces: NDArray[np.int32],
    chosen: NDArray[np.int64],
    near_at: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Those of the chosen faces of which `rasterise` may draw something over `near_at`: others lie outside, or behind
    the farthest pixel of each tile that they touch."""
    height, width = near_at.shape
    down, across = (height + _TILE - 1) // _TILE, (width + _TILE - 1) // _TILE
    tiles = np.full((down, across), np.inf, np.float32)
    farthest = np.empty(width, np.float32)
    for band in range(down):
        farthest[:] = near_at[band * _TILE]
        for row in range(band * _TILE + 1, min((band + 1) * _TILE, height)):
            line = near_at[row]
            for column in range(width):
                farthest[column] = min(farthest[column], line[column])
        for column in range(width):
            tiles[band, column // _TILE] = min(tiles[band, column // _TILE], farthest[column])
    out, count = np.empty(len(chosen), np.int64), 0
    for face in chosen:
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        near_a, near_b, near_c = nearness[a], nearness[b], nearness[c]
        # Inside, a pixel's may round to a little more than its corners'.
        nearest = max(near_a, near_b, near_c) + np.float32(1e-5) * (abs(near_a) + abs(near_b) + abs(near_c))
        ax, bx, cx = int(corners[a, 0]) >> _SHIFT, int(corners[b, 0]) >> _SHIFT, int(corners[c, 0]) >> _SHIFT
        ay, by, cy = int(corners[a, 1]) >> _SHIFT, int(corners[b, 1]) >> _SHIFT, int(corners[c, 1]) >> _SHIFT
        left, right = max(min(ax, bx, cx), 0), min(max(ax, bx, cx), across - 1)
        top, bottom = max(min(ay, by, cy), 0), min(max(ay, by, cy), down - 1)
        seen, band = False, top
        while band <= bottom and not seen:
            tile = left
            while tile <= right and not seen:
                seen = nearest >= tiles[band, tile]
                tile += 1
            band += 1
        if seen:
            out[count] = face
            count += 1
    return out[:count]


def nearest_first(
    nearness: NDArray[np.float32], faces: NDArray[np.int32], chosen: NDArray[np.int64], parts: int
) -> list[NDArray[np.int64]]:
    """The chosen faces in about equal parts by their nearest corners, the nearest part first; each in order."""
    order, until = by_part(nearness, faces, chosen, parts)
    return [order[first:last] for first, last in pairwise(until.tolist())]


@compiled
def by_part(
    nearness: NDArray[np.float32], faces: NDArray[np.int32], chosen: NDArray[np.int64], parts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The chosen faces part by part, of `nearest_first`, and [parts + 1] where the parts begin and the last ends."""
    count = len(chosen)
    bins, nearest = np.zeros(count, np.int64), np.empty(count, np.float32)
    low, high = np.float32(np.inf), np.float32(-np.inf)
    for n in range(count):
        a, b, c = faces[chosen[n], 0], faces[chosen[n], 1], faces[chosen[n], 2]
        nearest[n] = max(nearness[a], nearness[b], nearness[c])
        low, high = min(low, nearest[n]), max(high, nearest[n])
    nearer = np.zeros(_BINS + 1, np.int64)  # how many are in nearer bins
    for n in range(count):
        if high > low:
            bins[n] = min(int((high - nearest[n]) / (high - low) * _BINS), _BINS - 1)
        nearer[bins[n] + 1] += 1
    for k in range(_BINS):
        nearer[k + 1] += nearer[k]
    out, until = np.empty(count, np.int64), np.zeros(parts + 1, np.int64)
    for n in range(count):
        bins[n] = nearer[bins[n]] * parts // count
        until[bins[n] + 1] += 1
    for k in range(parts):
        until[k + 1] += until[k]
    place = until.copy()
    for n in range(count):
        out[place[bins[n]]] = chosen[n]
        place[bins[n]] += 1
    return out, until
