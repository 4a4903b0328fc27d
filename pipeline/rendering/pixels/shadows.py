"""Where light does not reach: shadows of the first lamp, and corners that see little of the sky."""

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.compiling import compiled
from pipeline.rendering.exact.raster import NOTHING, STEPS, rasterise

SHADOW_SIDE = 128  # pixels of a shadow map, which is 2 * SHADOW_REACH decimetres wide
SHADOW_REACH = 1.8


@compiled
def dark_corners(near_at: NDArray[np.float32], distance: float, step: float, fine: int) -> NDArray[np.float32]:
    """[H, W] how much of the sky a pixel of the crop sees, 0 to 1, by what lies nearer in two rings around it.

    Args:
        near_at: [H * fine, W * fine] `distance` over the distance; 0 where nothing is.
        distance: in decimetres.
        step: pixels of the crop in a decimetre.
        fine: drawn pixels a side for one of the crop.
    """
    height, width = near_at.shape[0] // fine, near_at.shape[1] // fine
    out = np.ones((height, width), np.float32)
    scale = fine * step / 57.0
    ring_x = (3, 2, 0, -2, -3, -2, 0, 2, 8, 6, 0, -6, -8, -6, 0, 6)
    ring_y = (0, 2, 3, 2, 0, -2, -3, -2, 3, -6, 8, 6, -3, -6, -8, 6)
    depth = np.empty(near_at.shape)
    for row in range(near_at.shape[0]):
        for column in range(near_at.shape[1]):
            depth[row, column] = distance / near_at[row, column]
    total = np.empty(width)
    for row in range(height):
        total[:] = 0
        here = depth[row * fine]
        for k in range(16):
            below, right = int(ring_y[k] * scale), int(ring_x[k] * scale)
            if not 0 <= row * fine + below < near_at.shape[0]:
                continue
            there = depth[row * fine + below]
            reach = 0.06 if k < 8 else 0.16
            first, last = max(0, (fine - 1 - right) // fine), min(width, (near_at.shape[1] - right + fine - 1) // fine)
            for column in range(first, last):
                closer = here[column * fine] - there[column * fine + right]
                if closer > 0.2 * reach:
                    # What is far in front, such as a nose seen from the side, does not touch.
                    total[column] += min(1.0, closer / reach) * max(0.0, 1 - max(0.0, closer - 0.3) / 0.4)
        for column in range(width):
            if near_at[row * fine, column * fine] > 0:
                out[row, column] = max(0.25, 1 - total[column] / 16)
    return out


def shadow_map(
    points: NDArray[np.float32], faces: NDArray[np.int32], chosen: NDArray[np.int64], axes: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[S, S] how near the first light's nearest point is, in decimetres along its direction, and its `bounds_of`."""
    corners, near = towards(points, axes)
    near_at = np.full((SHADOW_SIDE, SHADOW_SIDE), -1e9, np.float32)
    face_at = np.full((SHADOW_SIDE, SHADOW_SIDE), NOTHING, np.int32)
    weight_at = np.zeros((SHADOW_SIDE, SHADOW_SIDE, 2), np.float32)
    rasterise(corners, near, faces, chosen, False, face_at, weight_at, near_at)
    return near_at, bounds_of(near_at)


@compiled
def towards(points: NDArray[np.float32], axes: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """[V, 2] where in the shadow map points are, in steps, and [V] how near the light."""
    scale, reach, half = np.float32(SHADOW_SIDE / (2 * SHADOW_REACH)), np.float32(SHADOW_REACH), np.float32(0.5)
    corners, near = np.empty((len(points), 2), np.int32), np.empty(len(points), np.float32)
    for vertex in range(len(points)):
        x, y, z = points[vertex, 0], points[vertex, 1], points[vertex, 2]
        across = axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z
        up = axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z
        near[vertex] = axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z
        corners[vertex, 0] = np.int32(np.rint(np.float64((across + reach) * scale - half) * STEPS))
        corners[vertex, 1] = np.int32(np.rint(np.float64((reach - up) * scale - half) * STEPS))
    return corners, near


@compiled
def bounds_of(shadow: NDArray[np.float32]) -> NDArray[np.float32]:
    """[S, S, 2] the least and the largest of a shadow map in the sixteen pixels from one above and to the left of each
    pixel on: whether light reaches a place is mostly the same for all. Zeros where some lie outside the map."""
    side = shadow.shape[0]
    least, largest = shadow.copy(), shadow.copy()
    for row in range(side - 3):
        for k in range(1, 4):
            for column in range(side):
                least[row, column] = min(least[row, column], shadow[row + k, column])
                largest[row, column] = max(largest[row, column], shadow[row + k, column])
    out = np.zeros((side, side, 2), np.float32)
    for row in range(side - 3):
        for column in range(side - 3):
            low, high = least[row, column], largest[row, column]
            for k in range(1, 4):
                low, high = min(low, least[row, column + k]), max(high, largest[row, column + k])
            out[row + 1, column + 1, 0], out[row + 1, column + 1, 1] = low, high
    return out
