"""Hair as ribbons: locks that grow from the skin, are combed, fall, curl and go around the head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.compiling import compiled

SEGMENTS = 7  # of a lock
_TURNS = 32  # steps of a whole turn in the table of sines


@dataclass(frozen=True, eq=False)
class Locks:
    """[N] locks of a person's hair or beard."""

    points: NDArray[np.float32]  # [N, SEGMENTS + 1, 3]
    width: NDArray[np.float32]  # [N] in decimetres
    own: NDArray[np.float32]  # [N] a number from 0 to 1 that its brightness follows
    root: NDArray[np.int64]  # [N] the vertex of the head that it grows next to

    def only(self, chosen: NDArray[np.bool_]) -> Locks:
        """Those that are chosen [N]."""
        return Locks(self.points[chosen], self.width[chosen], self.own[chosen], self.root[chosen])


@compiled
def grown(
    roots: NDArray[np.float32],
    outward: NDArray[np.float32],
    comb: NDArray[np.float32],
    length: NDArray[np.float32],
    lift: NDArray[np.float32],
    fall: NDArray[np.float32],
    clear: NDArray[np.float32],
    phase: NDArray[np.float32],
    frizz: NDArray[np.float32],
    curl: float,
    turns: float,
    volume: float,
    centre: NDArray[np.float32],
    radii: NDArray[np.float32],
    middle: float,
    sines: NDArray[np.float32],
) -> NDArray[np.float32]:
    """[N, SEGMENTS + 1, 3] locks in decimetres.

    Args:
        roots: [N, 3]. outward: [N, 3] the skin's normals there.
        comb: [N, 3] where each is combed to. length: [N]. lift: [N] how far it stands off at the root.
        fall: [N] how soon it hangs. clear: [N] how far aside it must be where it is well below its
            root, in front: not before the face. phase: [N] from 0 to 1, of the curls. frizz: [N, 3] its own way.
        curl: radius of the curls. turns: of a curl, in a lock. volume: how far locks lie off the head at their ends.
        centre, radii: [3] of the ellipsoid that the head is taken for.
        middle: where the hair is parted, in decimetres.
        sines: [S + S / 4] of one turn and a quarter.
    """
    count = roots.shape[0]
    whole = sines.shape[0] * 4 // 5
    out = np.empty((count, SEGMENTS + 1, 3), np.float32)
    for n in range(count):
        x, y, z = roots[n, 0], roots[n, 1], roots[n, 2]
        qx, qy, qz = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
        least = np.sqrt(qx * qx + qy * qy + qz * qz)
        dx = outward[n, 0] * lift[n] + frizz[n, 0]
        dy = outward[n, 1] * lift[n] + frizz[n, 1]
        dz = outward[n, 2] * lift[n] + frizz[n, 2]
        out[n, 0, 0], out[n, 0, 1], out[n, 0, 2] = x, y, z
        step = length[n] / SEGMENTS
        for k in range(SEGMENTS):
            part = (k + 1) / SEGMENTS
            qx, qy, qz = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
            ex, ey, ez = qx / radii[0], qy / radii[1], qz / radii[2]
            size = 1 / np.sqrt(ex * ex + ey * ey + ez * ez + 1e-12)
            ex, ey, ez = ex * size, ey * size, ez * size
            # The comb goes along the head; only what stands off or hangs leaves it.
            fx, fy, fz = comb[n, 0], comb[n, 1], comb[n, 2]
            off = fx * ex + fy * ey + fz * ez
            fx, fy, fz = fx - off * ex, fy - off * ey, fz - off * ez
            hang = fall[n] * part
            dx = 0.62 * dx + 0.38 * fx
            dy = 0.62 * dy + 0.38 * fy - hang * 0.35
            dz = 0.62 * dz + 0.38 * fz
            size = 1 / np.sqrt(dx * dx + dy * dy + dz * dz + 1e-12)
            dx, dy, dz = dx * size, dy * size, dz * size
            x, y, z = x + step * dx, y + step * dy, z + step * dz
            qx, qy, qz = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
            now = np.sqrt(qx * qx + qy * qy + qz * qz)
            wanted = least + 0.02 + volume * part
            if now < wanted:
                push = wanted / now
                x, y, z = (
                    centre[0] + (x - centre[0]) * push,
                    centre[1] + (y - centre[1]) * push,
                    centre[2] + (z - centre[2]) * push,
                )
            # Hair that is no fringe parts before the face: the further below its root, the further to the side.
            if clear[n] > 0 and z > centre[2] + 0.2:
                down = min(1.0, max(0.0, (out[n, 0, 1] - y) / 0.35))
                aside = clear[n] * down * (2 - down)
                if abs(x) < aside:
                    x += 0.55 * ((aside if out[n, 0, 0] >= middle else -aside) - x)
            place = phase[n] * whole + turns * part * whole
            i = int(place) % whole
            sine, cosine = sines[i] * curl * min(1.0, 2 * part), sines[i + whole // 4] * curl * min(1.0, 2 * part)
            # Two directions across the lock.
            ux, uy, uz = dy, -dx, np.float32(0)
            size = 1 / np.sqrt(ux * ux + uy * uy + 1e-9)
            ux, uy = ux * size, uy * size
            wx, wy, wz = dy * uz - dz * uy, dz * ux - dx * uz, dx * uy - dy * ux
            out[n, k + 1, 0] = x + sine * ux + cosine * wx
            out[n, k + 1, 1] = y + sine * uy + cosine * wy
            out[n, k + 1, 2] = z + sine * uz + cosine * wz
    return out


@compiled
def ribbons(
    seen: NDArray[np.float32], width: NDArray[np.float32], own: NDArray[np.float32], distance: float, taper: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Ribbons that turn their flat side to the camera, for locks [N, K, 3] as it has them; `taper` of 1 makes tips.

    Returns:
        [N * K * 2, 3] points, two a joint; [N * K * 2, 3] the lock's direction there; [N * K * 2, 2] how far from the
        root (0 to 1) and the lock's own number.
    """
    count, joints = seen.shape[0], seen.shape[1]
    points = np.empty((count * joints * 2, 3), np.float32)
    along = np.empty((count * joints * 2, 3), np.float32)
    places = np.empty((count * joints * 2, 2), np.float32)
    for n in range(count):
        for k in range(joints):
            before, after = max(k - 1, 0), min(k + 1, joints - 1)
            tx = seen[n, after, 0] - seen[n, before, 0]
            ty = seen[n, after, 1] - seen[n, before, 1]
            tz = seen[n, after, 2] - seen[n, before, 2]
            size = 1 / np.sqrt(tx * tx + ty * ty + tz * tz + 1e-12)
            tx, ty, tz = tx * size, ty * size, tz * size
            vx, vy, vz = -seen[n, k, 0], -seen[n, k, 1], distance - seen[n, k, 2]
            sx, sy, sz = ty * vz - tz * vy, tz * vx - tx * vz, tx * vy - ty * vx
            part = k / (joints - 1)
            half = 0.5 * width[n] * (1 - taper * part * part)
            size = half / np.sqrt(sx * sx + sy * sy + sz * sz + 1e-12)
            for side in range(2):
                at = (n * joints + k) * 2 + side
                sign = size if side == 0 else -size
                points[at, 0] = seen[n, k, 0] + sign * sx
                points[at, 1] = seen[n, k, 1] + sign * sy
                points[at, 2] = seen[n, k, 2] + sign * sz
                along[at, 0], along[at, 1], along[at, 2] = tx, ty, tz
                places[at, 0], places[at, 1] = part, own[n]
    return points, along, places


@compiled
def ribbon_faces(count: int, joints: int) -> NDArray[np.int32]:
    """[count * (joints - 1) * 2, 3] the triangles of `ribbons`."""
    quads = count * (joints - 1)
    out = np.empty((2 * quads, 3), np.int32)
    for quad in range(quads):
        first = (quad // (joints - 1) * joints + quad % (joints - 1)) * 2
        out[quad, 0], out[quad, 1], out[quad, 2] = first, first + 1, first + 2
        out[quads + quad, 0], out[quads + quad, 1], out[quads + quad, 2] = first + 2, first + 1, first + 3
    return out


def sines() -> NDArray[np.float32]:
    """[40] sines of 32 steps of a turn and a quarter, by the recurrence of a rotation: no library's sine."""
    step_sine, step_cosine = 0.19509032201612825, 0.9807852804032304
    values, s, c = [], 0.0, 1.0
    for _ in range(_TURNS + _TURNS // 4):
        values.append(s)
        s, c = s * step_cosine + c * step_sine, c * step_cosine - s * step_sine
    return np.array(values, np.float32)
