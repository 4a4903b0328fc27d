"""Light on what is seen, and the crop's pixels."""

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.compiling import compiled


@compiled
def shade(
    face_at: NDArray[np.int32],
    weight_at: NDArray[np.float32],
    faces: NDArray[np.int32],
    normals: NDArray[np.float32],
    part: NDArray[np.uint8],
    colours: NDArray[np.float32],
    light: NDArray[np.float32],
    background: float,
    fine: int,
) -> NDArray[np.uint8]:
    """[H, W, 3] pixels: the mean of `fine` times `fine` drawn ones each."""
    height, width = face_at.shape[0] // fine, face_at.shape[1] // fine
    out = np.empty((height, width, 3), np.uint8)
    length = np.sqrt(light[0] * light[0] + light[1] * light[1] + light[2] * light[2])
    for row in range(height):
        for column in range(width):
            red = green = blue = np.float32(0)
            for j in range(row * fine, (row + 1) * fine):
                for i in range(column * fine, (column + 1) * fine):
                    face = face_at[j, i]
                    if face < 0:
                        red += background
                        green += background
                        blue += background
                        continue
                    a, b, c = faces[face]
                    wb, wc = weight_at[j, i]
                    wa = np.float32(1) - wb - wc
                    amount = np.float32(0)
                    for k in range(3):
                        amount += (wa * normals[a, k] + wb * normals[b, k] + wc * normals[c, k]) * light[k]
                    lit = np.float32(0.3) + max(np.float32(0), amount / length)
                    colour = colours[part[face]]
                    red += colour[0] * lit
                    green += colour[1] * lit
                    blue += colour[2] * lit
            count = np.float32(fine * fine)
            out[row, column, 0] = np.uint8(min(255.0, 255.0 * np.sqrt(red / count)))
            out[row, column, 1] = np.uint8(min(255.0, 255.0 * np.sqrt(green / count)))
            out[row, column, 2] = np.uint8(min(255.0, 255.0 * np.sqrt(blue / count)))
    return out
