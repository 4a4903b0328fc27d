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
    steps_x, steps_y = np.empty(16, np.int64), np.empty(16, np.int64)
    for k in range(16):
        steps_x[k], steps_y[k] = int(ring_x[k] * scale), int(ring_y[k] * scale)
    for row in range(height):
        for column in range(width):
            here = near_at[row * fine, column * fine]
            if here <= 0:
                continue
            depth = distance / here
            total = 0.0
            for k in range(16):
                j, i = row * fine + steps_y[k], column * fine + steps_x[k]
                # Only what is nearer has a larger `near`: most are done without a division.
                if 0 <= j < near_at.shape[0] and 0 <= i < near_at.shape[1] and near_at[j, i] > here:
                    closer = depth - distance / near_at[j, i]
                    reach = 0.06 if k < 8 else 0.16
                    if closer > 0.2 * reach:
                        # What is far in front, such as a nose seen from the side, does not touch.
                        total += min(1.0, closer / reach) * max(0.0, 1 - max(0.0, closer - 0.3) / 0.4)
            out[row, column] = max(0.25, 1 - total / 16)
    return out


def shadow_map(
    points: NDArray[np.float32], faces: NDArray[np.int32], chosen: NDArray[np.int64], axes: NDArray[np.float32]
) -> NDArray[np.float32]:
    """[S, S] how near the first light's nearest point is, in decimetres along its direction."""
    across = axes[0, 0] * points[:, 0] + axes[0, 1] * points[:, 1] + axes[0, 2] * points[:, 2]
    up = axes[1, 0] * points[:, 0] + axes[1, 1] * points[:, 1] + axes[1, 2] * points[:, 2]
    near = axes[2, 0] * points[:, 0] + axes[2, 1] * points[:, 1] + axes[2, 2] * points[:, 2]
    scale = SHADOW_SIDE / (2 * SHADOW_REACH)
    flat = np.stack([(across + SHADOW_REACH) * scale - 0.5, (SHADOW_REACH - up) * scale - 0.5], 1)
    corners = np.round(flat.astype(np.float64) * STEPS).astype(np.int32)
    near_at = np.full((SHADOW_SIDE, SHADOW_SIDE), -1e9, np.float32)
    face_at = np.full((SHADOW_SIDE, SHADOW_SIDE), NOTHING, np.int32)
    weight_at = np.zeros((SHADOW_SIDE, SHADOW_SIDE, 2), np.float32)
    rasterise(corners, near, faces, chosen, False, face_at, weight_at, near_at)
    return near_at
