"""Light on what is seen: skin that light enters, eyes, hair and cloth, with shadows and dark corners."""

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.compiling import compiled
from pipeline.rendering.exact.raster import NOTHING
from pipeline.rendering.scene.materials import CAP, HAIR, LEFT_EYE, RIGHT_EYE, SKIN, TEETH

_DONE = -1  # the material of drawn pixels that nothing is to be painted over, any more


@compiled
def lit_share(shadow: NDArray[np.float32], bounds: NDArray[np.float32], x: float, y: float, depth: float) -> float:
    """The share of the neighbours in a shadow map [S, S] that the light reaches, the nearer ones more: soft edges."""
    side = shadow.shape[0]
    column = (x + 1.8) / 3.6 * side - 0.5
    row = (1.8 - y) / 3.6 * side - 0.5
    if column < 1 or row < 1 or column >= side - 2 or row >= side - 2:
        return 1.0
    i, j = int(column), int(row)
    # A point may lie a little behind what the light meets: the map's pixels are larger than the crop's.
    met = depth + 0.04
    if bounds[j, i, 1] <= met:
        return 1.0
    if bounds[j, i, 0] > met:
        return 0.0
    u, v = column - i, row - j
    # Weights from one to the left to two to the right; what is too far has none and adds nothing.
    far_left, left = max(1 - (1 + u) * 0.625, 0.0), max(1 - u * 0.625, 0.0)
    right, far_right = max(1 - (1 - u) * 0.625, 0.0), max(1 - (2 - u) * 0.625, 0.0)
    total = norm = 0.0
    for dj in range(-1, 3):
        tall = max(1 - abs(dj - v) * 0.625, 0.0)
        a, b, c, d = tall * far_left, tall * left, tall * right, tall * far_right
        norm = norm + a + b + c + d
        total += a if shadow[j + dj, i - 1] <= met else 0.0
        total += b if shadow[j + dj, i] <= met else 0.0
        total += c if shadow[j + dj, i + 1] <= met else 0.0
        total += d if shadow[j + dj, i + 2] <= met else 0.0
    return total / norm


@compiled
def blended(
    at: NDArray[np.float32],
    attributes: NDArray[np.float32],
    faces: NDArray[np.int32],
    face: int,
    of_b: float,
    of_c: float,
    share: float,
) -> None:
    """Add a face's attributes [V, K], by the weights of its second and third corner, to `at` [K], `share` times."""
    a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
    for k in range(at.shape[0]):
        start = attributes[a, k]
        at[k] += share * (start + of_b * (attributes[b, k] - start) + of_c * (attributes[c, k] - start))


@compiled
def skin_at(skin: NDArray[np.float32], u: float, v: float, at: NDArray[np.float32]) -> None:
    """Put the map's colour, oil and slopes across and down at column `u` and row `v` into `at` [6]."""
    i, j = int(np.floor(u)), int(np.floor(v))
    i = min(max(i, 1), skin.shape[1] - 3)
    j = min(max(j, 1), skin.shape[0] - 3)
    s, t = min(max(u - i, 0.0), 1.0), min(max(v - j, 0.0), 1.0)
    for k in range(4):
        top = skin[j, i, k] + s * (skin[j, i + 1, k] - skin[j, i, k])
        low = skin[j + 1, i, k] + s * (skin[j + 1, i + 1, k] - skin[j + 1, i, k])
        at[k] = top + t * (low - top)
    a, b, c, d = skin[j, i, 4], skin[j, i + 1, 4], skin[j + 1, i, 4], skin[j + 1, i + 1, 4]
    at[4] = 0.5 * (b - a + d - c)
    at[5] = 0.5 * (c - a + d - b)


@compiled
def eye_at(normal: NDArray[np.float32], eyes: NDArray[np.float32], at: NDArray[np.float32]) -> None:
    """Tint `at` [6], white, as the eyeball is where it faces `normal` [3]: pupil, iris, its rays and rim, or veins."""
    x, y, z = normal[0], normal[1], normal[2]
    towards = x * eyes[2, 0] + y * eyes[2, 1] + z * eyes[2, 2]
    iris, pupil = eyes[0, 3], eyes[0, 4]
    edge = (towards - iris) / (pupil - iris)  # 0 at the rim of the iris, 1 at the pupil's
    if edge > 1:
        at[0] = at[1] = at[2] = 0.006
    elif edge > 0:
        spoke = 9 * (7 * (x - y) * (x + y) + 13 * x * y)
        ray = 0.8 + 0.5 * abs(spoke - np.floor(spoke) - 0.5)
        shade_of = ray * (0.35 + 0.65 * min(1.0, edge * 6))
        at[0], at[1], at[2] = eyes[1, 3] * shade_of, eyes[1, 4] * shade_of, eyes[2, 3] * shade_of
    else:
        veins = eyes[2, 4] * min(1.0, -edge * 0.6)
        at[1] *= 1 - 0.28 * veins
        at[2] *= 1 - 0.32 * veins


@compiled
def scaled(vector: NDArray[np.float32]) -> None:
    """Make a vector [3] one long."""
    size = 1 / np.sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2] + 1e-12)
    for k in range(3):
        vector[k] *= size


@compiled
def relief(normal: NDArray[np.float32], up: NDArray[np.float32], across: float, down: float) -> None:
    """Turn a normal [3] by the slopes of the skin, whose map lies across and down on the head."""
    x, y, z = normal[0], normal[1], normal[2]
    tx, ty, tz = up[1] * z - up[2] * y, up[2] * x - up[0] * z, up[0] * y - up[1] * x
    bx, by, bz = y * tz - z * ty, z * tx - x * tz, x * ty - y * tx
    normal[0] = x - 0.55 * (across * tx - down * bx)
    normal[1] = y - 0.55 * (across * ty - down * by)
    normal[2] = z - 0.55 * (across * tz - down * bz)
    scaled(normal)


@compiled
def hair_light(
    out: NDArray[np.float32],
    colour: NDArray[np.float32],
    along: NDArray[np.float32],
    view: NDArray[np.float32],
    lights: NDArray[np.float32],
    lamp: int,
    reach: float,
) -> None:
    """Add what hair that goes `along` [3] reflects of one of the lights to `out` [3] (Kajiya & Kay, SIGGRAPH 1989)."""
    hx, hy, hz = lights[lamp, 0] + view[0], lights[lamp, 1] + view[1], lights[lamp, 2] + view[2]
    size = 1 / np.sqrt(hx * hx + hy * hy + hz * hz + 1e-12)
    cosine = along[0] * lights[lamp, 0] + along[1] * lights[lamp, 1] + along[2] * lights[lamp, 2]
    diffuse = 0.75 * np.sqrt(max(0.0, 1 - cosine * cosine))
    cosine = (along[0] * hx + along[1] * hy + along[2] * hz) * size
    tint = max(0.0, 1 - cosine * cosine)
    for _ in range(3):
        tint *= tint
    for k in range(3):
        out[k] += reach * lights[lamp, 3 + k] * (colour[k] * (diffuse + 0.8 * tint) + 0.042 * tint * tint)


@compiled
def solid_light(
    out: NDArray[np.float32],
    colour: NDArray[np.float32],
    normal: NDArray[np.float32],
    view: NDArray[np.float32],
    lights: NDArray[np.float32],
    lamp: int,
    surface: NDArray[np.float32],
    kind: int,
    shine: float,
    reach: float,
    glow: float,
    sees: float,
) -> None:
    """Add what a surface reflects of one of the lights to `out` [3]: softly around its edge, and as a glint of it."""
    facing = normal[0] * lights[lamp, 0] + normal[1] * lights[lamp, 1] + normal[2] * lights[lamp, 2]
    for k in range(3):
        wrap = surface[kind, k]
        amount = max(0.0, (facing + wrap) / (1 + wrap))
        # In its own shadow skin still glows a little, in red.
        through = reach + glow * (1 - reach) if k == 0 else reach
        out[k] += colour[k] * lights[lamp, 3 + k] * amount * through * (0.35 + 0.65 * sees)
    if facing > 0 and shine > 0 and reach > 0:
        hx, hy, hz = lights[lamp, 0] + view[0], lights[lamp, 1] + view[1], lights[lamp, 2] + view[2]
        size = 1 / np.sqrt(hx * hx + hy * hy + hz * hz + 1e-12)
        glint = max(0.0, (normal[0] * hx + normal[1] * hy + normal[2] * hz) * size)
        for _ in range(int(surface[kind, 4])):
            glint *= glint
        edge_on = 1 - max(0.0, normal[0] * view[0] + normal[1] * view[1] + normal[2] * view[2])
        glint *= shine * reach * (1 + 2.5 * edge_on * edge_on * edge_on)
        for k in range(3):
            out[k] += glint * lights[lamp, 3 + k]


@compiled
def shade(
    canvas: NDArray[np.float32],
    face_at: NDArray[np.int32],
    weight_at: NDArray[np.float32],
    faces: NDArray[np.int32],
    material: NDArray[np.uint8],
    attributes: NDArray[np.float32],
    skin: NDArray[np.float32],
    palette: NDArray[np.float32],
    surface: NDArray[np.float32],
    opacity: NDArray[np.float32],
    corners: NDArray[np.float32],
    shadow: NDArray[np.float32],
    bounds: NDArray[np.float32],
    axes: NDArray[np.float32],
    lights: NDArray[np.float32],
    sky: NDArray[np.float32],
    up: NDArray[np.float32],
    eyes: NDArray[np.float32],
    gloss: float,
    distance: float,
    fine: int,
) -> None:
    """Paint what is seen over `canvas` [H, W, 3], in linear light.

    The drawn pixels of one of the crop's that are of one material are shaded once, at their middle; those of the eyes,
    each by itself.

    Args:
        canvas: what is behind; painted over by each material's opacity.
        face_at, weight_at: of `rasterise`.
        faces: [F, 3]. material: [F].
        attributes: [V, 9] points and unit normals as the camera has them (of hair, its direction); column and row on
            the map of the skin (of hair, how far from the root, and a number of its own); how far inside the mouth.
        skin: [R, C, 5] as `skin.painted`.
        palette: [materials, 3] colours. surface: as `surfaces`. opacity: [materials].
        corners: as `dark_corners`.
        shadow, bounds: the first light's, of `shadow_map`. axes: [3, 3] its: right, up, towards it.
        lights: [L, 6] direction towards each light (unit), and its colour.
        sky: [3, 3] colours of the light from above, from the horizon and from below.
        up: [3] the direction of the head's top.
        eyes: [3, 5]: the middles of both eyes and the gaze; beside them the cosines of iris and pupil, the iris's red
            and green, its blue and how red the white is.
        gloss: how oily skin is, 1 as usual. distance: of the camera. fine: drawn pixels a side for one of the crop.
    """
    at = np.empty(9, np.float32)
    colour, out = np.empty(6, np.float32), np.empty(3, np.float32)
    normal, view = np.empty(3, np.float32), np.empty(3, np.float32)
    samples = fine * fine
    face_of, kind_of = np.empty(samples, np.int64), np.empty(samples, np.int64)
    member = np.empty(samples, np.bool_)
    below, right = np.empty(samples, np.int64), np.empty(samples, np.int64)  # a division each is slow
    for sample in range(samples):
        below[sample], right[sample] = sample // fine, sample % fine
    for line in range(corners.shape[0]):
        row, anything = line * fine, NOTHING
        for j in range(fine):
            for i in range(face_at.shape[1]):
                anything = max(anything, face_at[row + j, i])
        if anything == NOTHING:  # what is seen through is in few lines
            continue
        for place in range(corners.shape[1]):
            column = place * fine
            sees = corners[line, place]
            for sample in range(samples):
                face_of[sample] = face_at[row + below[sample], column + right[sample]]
                kind_of[sample] = material[face_of[sample]] if face_of[sample] >= 0 else _DONE
            for sample in range(samples):
                kind, first = kind_of[sample], face_of[sample]
                if kind == _DONE:
                    continue
                # Drawn pixels of the crop's that are of one material are shaded as one.
                count, one = 0, True
                alone = kind in (LEFT_EYE, RIGHT_EYE)
                for other in range(sample, samples):
                    member[other] = kind_of[other] == kind and not (alone and other > sample)
                    if member[other]:
                        kind_of[other] = _DONE
                        count += 1
                        one = one and face_of[other] == first
                for k in range(9):
                    at[k] = 0
                of_b = of_c = 0.0
                share = 1.0 / count
                for other in range(sample, samples):
                    if member[other]:
                        j, i = row + below[other], column + right[other]
                        second, third = weight_at[j, i, 0], weight_at[j, i, 1]
                        if one:
                            of_b += share * second
                            of_c += share * third
                        else:
                            blended(at, attributes, faces, face_of[other], second, third, share)
                if one:
                    blended(at, attributes, faces, first, of_b, of_c, 1.0)
                for k in range(3):
                    normal[k], view[k], colour[k] = at[3 + k], -at[k], palette[kind, k]
                view[2] += distance
                scaled(view)
                shine, glow = surface[kind, 3], 0.0
                if kind in (LEFT_EYE, RIGHT_EYE):
                    for k in range(3):
                        normal[k] = at[k] - eyes[kind - LEFT_EYE, k]
                scaled(normal)
                dark = sees
                if kind == TEETH:  # teeth are moist and let light through: the mouth does not darken them as much
                    dark = 0.5 + 0.5 * sees
                if kind == SKIN:
                    skin_at(skin, at[6], at[7], colour)
                    shine, glow = shine * colour[3] * gloss, 0.12
                    relief(normal, up, colour[4], colour[5])
                    if at[8] > 0:  # the mouth's inside
                        colour[0] += at[8] * (0.16 - colour[0])
                        colour[1] += at[8] * (0.035 - colour[1])
                        colour[2] += at[8] * (0.03 - colour[2])
                elif kind == CAP:
                    skin_at(skin, at[6], at[7], colour)
                elif kind in (LEFT_EYE, RIGHT_EYE):
                    eye_at(normal, eyes, colour)
                elif kind == HAIR:
                    own = (0.65 + 0.7 * at[7]) * (0.45 + 0.55 * min(1.0, at[6] * 1.6))
                    for k in range(3):
                        colour[k] *= own
                # Light from everywhere: above, horizon, below.
                high, low = max(normal[1], 0.0), max(-normal[1], 0.0)
                if kind == HAIR:
                    high, low = 0.35, 0.1
                for k in range(3):
                    out[k] = colour[k] * dark * (high * sky[0, k] + (1 - high - low) * sky[1, k] + low * sky[2, k])
                for light in range(lights.shape[0]):
                    reached = 1.0
                    facing = normal[0] * lights[light, 0] + normal[1] * lights[light, 1] + normal[2] * lights[light, 2]
                    if kind != HAIR and facing < -0.42:  # no material lets light further around
                        continue
                    if light == 0:
                        x = axes[0, 0] * at[0] + axes[0, 1] * at[1] + axes[0, 2] * at[2]
                        y = axes[1, 0] * at[0] + axes[1, 1] * at[1] + axes[1, 2] * at[2]
                        z = axes[2, 0] * at[0] + axes[2, 1] * at[1] + axes[2, 2] * at[2]
                        reached = lit_share(shadow, bounds, x, y, z)
                        reached = max(reached, 0.4) if kind == TEETH else reached
                    if kind == HAIR:
                        hair_light(out, colour, normal, view, lights, light, reached * (0.4 + 0.6 * dark))
                    else:
                        solid_light(out, colour, normal, view, lights, light, surface, kind, shine, reached, glow, dark)
                for other in range(sample, samples):
                    if member[other]:
                        j, i = row + below[other], column + right[other]
                        for k in range(3):
                            canvas[j, i, k] += opacity[kind] * (out[k] - canvas[j, i, k])
