"""Light on what is seen: skin that light enters, eyes, hair and cloth, with shadows and dark corners."""

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.compiling import compiled

# Materials of faces; the first six are `model.PARTS`.
SKIN, LEFT_EYE, RIGHT_EYE, TEETH, LASHES, MOUTH, HAIR, CAP, CLOTH, FRAME, LENS, HAND, WOVEN = range(13)

SHADOW_SIDE = 128  # pixels of a shadow map, which is 2 * SHADOW_REACH decimetres wide
SHADOW_REACH = 1.8
_BIAS = 0.04  # decimetres that a point may lie behind what the light meets and still be lit


@compiled
def dark_corners(near_at: NDArray[np.float32], distance: float, step: float, fine: int) -> NDArray[np.float32]:
    """[H, W] how much of the sky a pixel of the crop sees, 0 to 1, by what lies nearer in a ring around it.

    Args:
        near_at: [H * fine, W * fine] `distance` over the distance; 0 where nothing is.
        distance: in decimetres.
        step: pixels of the crop in a decimetre.
        fine: drawn pixels a side for one of the crop.
    """
    height, width = near_at.shape[0] // fine, near_at.shape[1] // fine
    out = np.ones((height, width), np.float32)
    ring_x = (3, 2, 0, -2, -3, -2, 0, 2, 8, 6, 0, -6, -8, -6, 0, 6)
    ring_y = (0, 2, 3, 2, 0, -2, -3, -2, 3, -6, 8, 6, -3, -6, -8, 6)
    scale = fine * step / 57.0
    for row in range(height):
        for column in range(width):
            here = near_at[row * fine, column * fine]
            if here <= 0:
                continue
            depth = distance / here
            total = 0.0
            for k in range(16):
                j = row * fine + int(ring_y[k] * scale)
                i = column * fine + int(ring_x[k] * scale)
                if 0 <= j < near_at.shape[0] and 0 <= i < near_at.shape[1] and near_at[j, i] > 0:
                    closer = depth - distance / near_at[j, i]
                    reach = 0.06 if k < 8 else 0.16
                    if closer > 0.2 * reach:
                        # What is far in front, such as a nose seen from the side, does not touch.
                        total += min(1.0, closer / reach) * max(0.0, 1 - max(0.0, closer - 0.3) / 0.4)
            out[row, column] = max(0.25, 1 - total / 16)
    return out


@compiled
def lit_share(shadow: NDArray[np.float32], x: float, y: float, depth: float) -> float:
    """The share of the neighbours in a shadow map [S, S] that the light reaches, the nearer ones more: soft edges."""
    side = shadow.shape[0]
    column = (x + 1.8) / 3.6 * side - 0.5
    row = (1.8 - y) / 3.6 * side - 0.5
    if column < 1 or row < 1 or column >= side - 2 or row >= side - 2:
        return 1.0
    i, j = int(column), int(row)
    u, v = column - i, row - j
    total = norm = 0.0
    for dj in range(-1, 3):
        tall = 1 - abs(dj - v) * 0.625
        if tall <= 0:
            continue
        for di in range(-1, 3):
            wide = tall * (1 - abs(di - u) * 0.625)
            if wide > 0:
                norm += wide
                if shadow[j + dj, i + di] <= depth + 0.04:
                    total += wide
    return total / norm


@compiled
def shade(
    canvas: NDArray[np.float32],
    face_at: NDArray[np.int32],
    weight_at: NDArray[np.float32],
    faces: NDArray[np.int32],
    material: NDArray[np.uint8],
    points: NDArray[np.float32],
    normals: NDArray[np.float32],
    places: NDArray[np.float32],
    skin: NDArray[np.float32],
    inside: NDArray[np.float32],
    palette: NDArray[np.float32],
    opacity: NDArray[np.float32],
    corners: NDArray[np.float32],
    shadow: NDArray[np.float32],
    light_space: NDArray[np.float32],
    lights: NDArray[np.float32],
    sky: NDArray[np.float32],
    up: NDArray[np.float32],
    eyes: NDArray[np.float32],
    gloss: float,
    distance: float,
    fine: int,
) -> None:
    """Paint what is seen over `canvas` [H, W, 3], in linear light.

    Args:
        canvas: what is behind; painted over by each material's opacity.
        face_at, weight_at: of `rasterise`.
        faces: [F, 3]. material: [F].
        points: [V, 3] as the camera has them. normals: [V, 3] unit; of hair, its direction.
        places: [V, 2] on the map of the skin; of hair, how far from the root (0 to 1) and a number of its own (0 to 1).
        skin: [R, C, 5] as `painted`. inside: [V] of the mouth.
        palette: [materials, 3] colours. opacity: [materials].
        corners: as `dark_corners`.
        shadow: the first light's map. light_space: [3, 3] its axes: right, up, towards it.
        lights: [L, 6] direction towards each light (unit), and its colour.
        sky: [3, 3] colours of the light from above, from the horizon and from below.
        up: [3] the direction of the head's top, for the relief of the skin.
        eyes: [3, 5]: of each eye its middle; last the gaze. Then per row two numbers: cosines of iris and pupil; iris
            colour's first two; the third and how red the white is.
        gloss: how oily skin is, 1 as usual. distance: of the camera. fine: drawn pixels a side for one of the crop.
    """
    count = lights.shape[0]
    for row in range(face_at.shape[0]):
        for column in range(face_at.shape[1]):
            face = face_at[row, column]
            if face < 0:
                continue
            kind = material[face]
            a, b, c = faces[face]
            wb, wc = weight_at[row, column, 0], weight_at[row, column, 1]
            wa = np.float32(1) - wb - wc
            px = wa * points[a, 0] + wb * points[b, 0] + wc * points[c, 0]
            py = wa * points[a, 1] + wb * points[b, 1] + wc * points[c, 1]
            pz = wa * points[a, 2] + wb * points[b, 2] + wc * points[c, 2]
            nx = wa * normals[a, 0] + wb * normals[b, 0] + wc * normals[c, 0]
            ny = wa * normals[a, 1] + wb * normals[b, 1] + wc * normals[c, 1]
            nz = wa * normals[a, 2] + wb * normals[b, 2] + wc * normals[c, 2]
            u = wa * places[a, 0] + wb * places[b, 0] + wc * places[c, 0]
            v = wa * places[a, 1] + wb * places[b, 1] + wc * places[c, 1]
            vx, vy, vz = -px, -py, np.float32(distance) - pz
            size = np.float32(1) / np.sqrt(vx * vx + vy * vy + vz * vz)
            vx, vy, vz = vx * size, vy * size, vz * size
            red, green, blue = palette[kind, 0], palette[kind, 1], palette[kind, 2]
            # How far light goes around the edge of its own shadow, by colour: red furthest, as skin lets it through.
            wrap_r, wrap_g, wrap_b = np.float32(0.1), np.float32(0.1), np.float32(0.1)
            shine, sharp = np.float32(0.06), 3
            hair = False
            if kind == 1 or kind == 2:  # noqa: PLR1714
                eye = kind - 1
                nx, ny, nz = px - eyes[eye, 0], py - eyes[eye, 1], pz - eyes[eye, 2]
            size = np.float32(1) / np.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-12))
            nx, ny, nz = nx * size, ny * size, nz * size
            if kind == 0 or kind == 7:  # noqa: PLR1714
                i, j = int(np.floor(u)), int(np.floor(v))
                i = min(max(i, 1), skin.shape[1] - 3)
                j = min(max(j, 1), skin.shape[0] - 3)
                s, t = min(max(u - i, np.float32(0)), np.float32(1)), min(max(v - j, np.float32(0)), np.float32(1))
                w00, w01 = (1 - s) * (1 - t), s * (1 - t)
                w10, w11 = (1 - s) * t, s * t
                red = (
                    w00 * skin[j, i, 0]
                    + w01 * skin[j, i + 1, 0]
                    + w10 * skin[j + 1, i, 0]
                    + w11 * skin[j + 1, i + 1, 0]
                )
                green = (
                    w00 * skin[j, i, 1]
                    + w01 * skin[j, i + 1, 1]
                    + w10 * skin[j + 1, i, 1]
                    + w11 * skin[j + 1, i + 1, 1]
                )
                blue = (
                    w00 * skin[j, i, 2]
                    + w01 * skin[j, i + 1, 2]
                    + w10 * skin[j + 1, i, 2]
                    + w11 * skin[j + 1, i + 1, 2]
                )
                if kind == 0:
                    oil = skin[j, i, 3] * gloss
                    shine, sharp = np.float32(0.22) * oil, 4
                    wrap_r, wrap_g, wrap_b = np.float32(0.42), np.float32(0.20), np.float32(0.12)
                    # Relief: along the map's columns and rows, which lie across and down on the head.
                    across = np.float32(0.5) * (
                        skin[j, i + 1, 4] - skin[j, i, 4] + skin[j + 1, i + 1, 4] - skin[j + 1, i, 4]
                    )
                    down = np.float32(0.5) * (
                        skin[j + 1, i, 4] - skin[j, i, 4] + skin[j + 1, i + 1, 4] - skin[j, i + 1, 4]
                    )
                    tx, ty, tz = up[1] * nz - up[2] * ny, up[2] * nx - up[0] * nz, up[0] * ny - up[1] * nx
                    bx, by, bz = ny * tz - nz * ty, nz * tx - nx * tz, nx * ty - ny * tx
                    depth = np.float32(0.55)
                    nx -= depth * (across * tx - down * bx)
                    ny -= depth * (across * ty - down * by)
                    nz -= depth * (across * tz - down * bz)
                    size = np.float32(1) / np.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-12))
                    nx, ny, nz = nx * size, ny * size, nz * size
                    deep = wa * inside[a] + wb * inside[b] + wc * inside[c]
                    if deep > 0:
                        red += deep * (np.float32(0.16) - red)
                        green += deep * (np.float32(0.035) - green)
                        blue += deep * (np.float32(0.03) - blue)
            elif kind == 1 or kind == 2:  # noqa: PLR1714
                towards = nx * eyes[2, 0] + ny * eyes[2, 1] + nz * eyes[2, 2]
                iris, pupil = eyes[0, 3], eyes[0, 4]
                edge = (towards - iris) / (pupil - iris)  # 0 at the rim of the iris, 1 at the pupil's
                if edge > 0:
                    # Rays around the pupil, from the direction within the iris.
                    spoke = np.float32(7) * (nx - ny) * (nx + ny) + np.float32(13) * nx * ny
                    ray = np.float32(0.8) + np.float32(0.5) * abs(spoke * 9 - np.floor(spoke * 9) - np.float32(0.5))
                    rim = min(np.float32(1), edge * 6)
                    shade_of = ray * (np.float32(0.35) + np.float32(0.65) * rim)
                    red, green, blue = eyes[1, 3] * shade_of, eyes[1, 4] * shade_of, eyes[2, 3] * shade_of
                    if edge > 1:
                        red = green = blue = np.float32(0.006)
                else:
                    veins = eyes[2, 4] * min(np.float32(1), -edge * np.float32(0.6))
                    green *= 1 - np.float32(0.28) * veins
                    blue *= 1 - np.float32(0.32) * veins
                shine, sharp = np.float32(0.9), 8
                wrap_r = wrap_g = wrap_b = np.float32(0.3)
            elif kind == 6:
                hair = True
                own = np.float32(0.65) + np.float32(0.7) * v
                depth_of = np.float32(0.45) + np.float32(0.55) * min(np.float32(1), u * np.float32(1.6))
                red, green, blue = red * own * depth_of, green * own * depth_of, blue * own * depth_of
            elif kind == 3:
                shine, sharp = np.float32(0.3), 5
            elif kind == 9:
                shine, sharp = np.float32(0.5), 6
            elif kind == 10:
                shine, sharp = np.float32(1.2), 7
            elif kind == 11:
                wrap_r, wrap_g, wrap_b = np.float32(0.42), np.float32(0.20), np.float32(0.12)
            sees = corners[row // fine, column // fine]
            # Light from everywhere: above, horizon, below.
            high = max(ny, np.float32(0))
            low = max(-ny, np.float32(0))
            level = np.float32(1) - high - low
            if hair:
                high, low, level = np.float32(0.35), np.float32(0.1), np.float32(0.55)
            out_r = red * sees * (high * sky[0, 0] + level * sky[1, 0] + low * sky[2, 0])
            out_g = green * sees * (high * sky[0, 1] + level * sky[1, 1] + low * sky[2, 1])
            out_b = blue * sees * (high * sky[0, 2] + level * sky[1, 2] + low * sky[2, 2])
            for k in range(count):
                lx, ly, lz = lights[k, 0], lights[k, 1], lights[k, 2]
                reach = np.float32(1)
                if k == 0:
                    sx = light_space[0, 0] * px + light_space[0, 1] * py + light_space[0, 2] * pz
                    sy = light_space[1, 0] * px + light_space[1, 1] * py + light_space[1, 2] * pz
                    sz = light_space[2, 0] * px + light_space[2, 1] * py + light_space[2, 2] * pz
                    reach = np.float32(lit_share(shadow, sx, sy, sz))
                hx, hy, hz = lx + vx, ly + vy, lz + vz
                size = np.float32(1) / np.sqrt(hx * hx + hy * hy + hz * hz + np.float32(1e-12))
                if hair:
                    along = nx * lx + ny * ly + nz * lz
                    diffuse = np.sqrt(max(np.float32(0), 1 - along * along)) * np.float32(0.75)
                    along = (nx * hx + ny * hy + nz * hz) * size
                    tip = max(np.float32(0), 1 - along * along)
                    tip = tip * tip
                    tip = tip * tip
                    tip = tip * tip
                    bright = np.float32(0.35) * tip * tip
                    tint = np.float32(0.8) * tip
                    part = reach * (np.float32(0.4) + np.float32(0.6) * sees)
                    out_r += part * lights[k, 3] * (red * (diffuse + tint) + np.float32(0.12) * bright)
                    out_g += part * lights[k, 4] * (green * (diffuse + tint) + np.float32(0.12) * bright)
                    out_b += part * lights[k, 5] * (blue * (diffuse + tint) + np.float32(0.12) * bright)
                    continue
                facing = nx * lx + ny * ly + nz * lz
                r = max(np.float32(0), (facing + wrap_r) / (1 + wrap_r))
                g = max(np.float32(0), (facing + wrap_g) / (1 + wrap_g))
                b_ = max(np.float32(0), (facing + wrap_b) / (1 + wrap_b))
                # In its own shadow skin still glows a little, in red.
                soft = np.float32(0.12) if kind == 0 else np.float32(0)
                mixed = np.float32(0.35) + np.float32(0.65) * sees
                out_r += red * lights[k, 3] * r * (reach + soft * (1 - reach)) * mixed
                out_g += green * lights[k, 4] * g * reach * mixed
                out_b += blue * lights[k, 5] * b_ * reach * mixed
                glint = max(np.float32(0), (nx * hx + ny * hy + nz * hz) * size)
                for _ in range(sharp):
                    glint *= glint
                if facing > 0:
                    edge_on = 1 - max(np.float32(0), nx * vx + ny * vy + nz * vz)
                    grazing = edge_on * edge_on * edge_on
                    glint *= shine * reach * (1 + np.float32(2.5) * grazing)
                    out_r += glint * lights[k, 3]
                    out_g += glint * lights[k, 4]
                    out_b += glint * lights[k, 5]
            part = opacity[kind]
            canvas[row, column, 0] += part * (out_r - canvas[row, column, 0])
            canvas[row, column, 1] += part * (out_g - canvas[row, column, 1])
            canvas[row, column, 2] += part * (out_b - canvas[row, column, 2])
