"""What is worn on a head or held before it: glasses, hats and scarves, masks, hands."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.blending import mean_of, turned, vertex_normals
from pipeline.rendering.exact.draws import Draws
from pipeline.rendering.people.hair import smooth
from pipeline.rendering.people.model import Model, Vectors
from pipeline.rendering.people.strands import Locks, sines
from pipeline.rendering.scene.camera import rotation
from pipeline.rendering.scene.materials import FRAME, HAND, LENS, WOVEN
from pipeline.rendering.scene.scene import Scene

FRAMES = ("thin", "thick", "half")
HATS = ("beanie", "cap", "scarf", "band")
_JOINTS = 17  # of a rim; a temple has as many


def add_glasses(scene: Scene, model: Model, points: Vectors, kind: str, draws: Draws) -> None:
    """Put glasses before the eyes: two rims, a bridge, temples to the ears, and lenses.

    `draws` is the person's: the same glasses in all photographs.
    """
    wide, tall = draws.uniform(0.20, 0.29), draws.uniform(0.13, 0.24)
    square, drop = draws.uniform(0, 0.9), draws.uniform(-0.05, 0.02)
    width = {"thin": 0.022, "thick": draws.uniform(0.045, 0.07), "half": 0.04}[kind]
    eyes = [mean_of(points, vertices) for vertices in model.eyes]
    depth = max(float(eye[2]) for eye in eyes) + 0.27
    gap = (float(eyes[0][0]) - float(eyes[1][0])) / 2
    wide = min(wide, gap - 0.05)
    wave = sines().astype(np.float64)
    sine, cosine = wave[:32:2], wave[8:40:2]
    largest = np.maximum(np.abs(sine), np.abs(cosine))
    across = wide * cosine * (1 - 0.35 * square + 0.35 * square / largest)
    up = tall * sine * (1 - 0.35 * square + 0.35 * square / largest)
    lines = []
    for eye in eyes:
        rim = np.stack([eye[0] + across, eye[1] + drop + up, np.full(16, depth)], 1)
        rim[:, 2] -= 0.22 * rim[:, 0] * rim[:, 0]
        seen = scene.view.seen(np.concatenate([rim, rim.mean(0, keepdims=True)]).astype(np.float32))
        around = np.arange(16)
        fan = np.stack([np.full(16, 16), around, (around + 1) % 16], 1).astype(np.int32)
        facing = np.tile(scene.view.turn[:, 2], (17, 1))
        scene.add(seen, facing, np.zeros((17, 2), np.float32), fan, np.full(16, LENS, np.uint8), both_sides=True)
        loop = rim[np.arange(_JOINTS) % 16]
        if kind == "half":
            loop = rim[np.minimum(np.arange(_JOINTS), 8)]
        lines.append(loop)
        side = 1.0 if eye[0] > 0 else -1.0
        part = np.arange(_JOINTS)[:, None] / (_JOINTS - 1)
        hinge = np.array([eye[0] + side * wide, eye[1] + drop + 0.5 * tall, depth - 0.22 * (abs(eye[0]) + wide) ** 2])
        ear = np.array([side * _ear(model, points), eye[1] + 0.02, 0.55])
        lines.append(hinge + part * (ear - hinge))
    part = np.arange(_JOINTS) / (_JOINTS - 1) * 2 - 1
    bridge = np.stack(
        [part * (gap - wide), np.full(_JOINTS, eyes[0][1] + drop + 0.35 * tall), np.full(_JOINTS, depth)], 1
    )
    lines.append(bridge + np.array([0, 0.04, 0.0]) * (1 - part * part)[:, None])
    joined = np.stack(lines).astype(np.float32)
    scene.add_locks(
        Locks(
            joined,
            np.full(len(joined), width, np.float32),
            np.full(len(joined), 0.5, np.float32),
            np.zeros(len(joined), np.int64),
        ),
        FRAME,
        0.0,
    )


def _ear(model: Model, points: Vectors) -> float:
    """How far from the middle a temple passes the ear."""
    beside = (model.rest[:, 1] > 7.35) & (model.rest[:, 1] < 7.55) & (model.rest[:, 2] > 0.6) & (model.rest[:, 2] < 0.9)
    return float(np.abs(points[beside, 0]).max()) + 0.03


def add_mask(scene: Scene, model: Model, draws: Draws) -> None:
    """Put a mask over mouth and nose."""
    angle, height = np.abs(model.chart.angle), model.rest[:, 1]
    top = draws.uniform(6.95, 7.12) - 0.25 * np.maximum(angle - 0.1, 0)
    covered = (height < top) & (height > 6.12) & (angle < 0.72) & (model.rest[:, 2] > 0.5)
    _add_shell(scene, model, covered, np.full(len(height), 0.05), 0.6, WOVEN)


def covered_by(model: Model, kind: str) -> NDArray[np.bool_]:
    """[V] which vertices a hat covers."""
    angle, height = np.abs(model.chart.angle), model.rest[:, 1].astype(np.float64)
    if kind == "scarf":
        face = (angle < 0.66 - 0.35 * smooth((6.9 - height) / 0.8)) & (height < 7.93) & (height > 6.22)
        return ~face
    line = {"beanie": 7.80, "cap": 7.86, "band": 7.78}[kind] - 0.30 * smooth((angle - 0.4) / 0.8)
    return (height > line) & ((height < line + 0.28) | (kind != "band"))


def add_hat(scene: Scene, model: Model, points: Vectors, kind: str, draws: Draws) -> None:
    """Put a hat, a cap, a headscarf or a band on the head."""
    covered = covered_by(model, kind)
    thick = draws.uniform(0.08, 0.14) if kind != "band" else 0.09
    _add_shell(scene, model, covered, np.full(len(covered), thick), 0.5, WOVEN)
    if kind == "cap":
        front = (model.rest[:, 1] > 7.8) & (model.rest[:, 1] < 7.95) & (model.rest[:, 2] > 0.8)
        depth, wide, height = points[front, 2].max(), np.abs(points[front, 0]).max(), points[front, 1].mean()
        across = (np.arange(9) / 4 - 1)[:, None]
        out = np.arange(4)[None, :] / 3
        long = draws.uniform(0.5, 0.8)
        x = np.broadcast_to(across * wide * (1 - 0.12 * out), (9, 4))
        round_off = 1 - across * across
        z = depth - 0.55 * (1 - round_off) + 0.05 + out * long * (0.35 + 0.65 * round_off)
        y = np.broadcast_to(height - 0.22 * out - 0.10 * across * across, (9, 4))
        brim = scene.view.seen(np.stack([x, y, z], 2).reshape(-1, 3).astype(np.float32))
        i, j = (k.ravel() for k in np.meshgrid(np.arange(8), np.arange(3), indexing="ij"))
        a, b, c, d = i * 4 + j, i * 4 + j + 1, i * 4 + j + 5, i * 4 + j + 4
        faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]).astype(np.int32)
        normals = np.tile(scene.view.turn[:, 1], (len(brim), 1))
        scene.add(
            brim,
            normals,
            np.zeros((len(brim), 2), np.float32),
            faces,
            np.full(len(faces), WOVEN, np.uint8),
            both_sides=True,
        )


def add_hand(scene: Scene, model: Model, points: Vectors, draws: Draws) -> None:
    """Hold the right hand before a cheek, the chin or the mouth, or show it beside the face."""
    side = draws.choice((-1.0, 1.0))
    hand = model.hand * np.array([side, 1, 1], np.float32)  # 1: the right hand
    faces = model.hand_faces if side > 0 else model.hand_faces[:, ::-1]
    lean = rotation(draws.normal(0, 20), draws.normal(-12, 10), side * draws.uniform(-15, 60))
    placed = turned(hand, lean, np.zeros(3, np.float32))
    nose = points[model.landmarks[2][0]]
    where = np.array(
        [-side * draws.uniform(0.2, 0.9), draws.uniform(-1.9, -1.2), draws.uniform(-0.1, 0.15)], np.float32
    )
    seen = scene.view.seen((placed + nose + where).astype(np.float32))
    normals = vertex_normals(seen, faces)
    scene.add(
        seen,
        normals,
        np.zeros((len(seen), 2), np.float32),
        np.ascontiguousarray(faces),
        np.full(len(faces), HAND, np.uint8),
    )


def _add_shell(
    scene: Scene, model: Model, covered: NDArray[np.bool_], thick: NDArray[np.float64], smoothed: float, material: int
) -> None:
    """Add cloth over the covered vertices [V], off the skin by `thick` [V] decimetres, and smoother than it."""
    head, normals = scene.points[0], scene.normals[0]
    around = head - scene.view.seen(np.array([[0.0, 7.3, 0.4]], np.float32))
    length = np.sqrt(around[:, 0] * around[:, 0] + around[:, 1] * around[:, 1] + around[:, 2] * around[:, 2])
    outward = around / length[:, None]
    mixed = normals + np.float32(smoothed) * (outward - normals)
    faces = model.skin[covered[model.skin].all(1)]
    shell = (head + normals * thick[:, None].astype(np.float32)).astype(np.float32)
    scene.add(shell, mixed.astype(np.float32), model.chart.places, faces, np.full(len(faces), material, np.uint8))
