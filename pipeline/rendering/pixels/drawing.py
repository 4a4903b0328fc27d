"""A scene drawn: which triangle each pixel sees, and which lies in front of it that one sees through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.raster import NOTHING, STEPS, rasterise
from pipeline.rendering.scene.materials import LASHES, LENS
from pipeline.rendering.scene.scene import Scene


@dataclass(frozen=True)
class Drawn:
    """A scene in pixels: what is seen, and what is seen through in front of it."""

    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    places: NDArray[np.float32]
    faces: NDArray[np.int32]
    material: NDArray[np.uint8]
    near_at: NDArray[np.float32]
    layers: tuple[tuple[NDArray[np.int32], NDArray[np.float32]], ...]  # face_at and weight_at of either


def drawn_scene(scene: Scene, height: int, width: int, fine: int) -> Drawn:
    """Rasterise a scene for a crop of height x width pixels of `fine` x `fine` each."""
    points, faces, material = np.concatenate(scene.points), np.concatenate(scene.faces), np.concatenate(scene.material)
    where, near = scene.view.pixels(points)
    corners = np.round(((where + 0.5) * fine - 0.5) * STEPS).astype(np.int32)
    shape = (height * fine, width * fine)
    face_at, weight_at = np.full(shape, NOTHING, np.int32), np.zeros((*shape, 2), np.float32)
    near_at = np.zeros(shape, np.float32)
    clear = (material == LASHES) | (material == LENS)
    both = np.repeat(scene.both_sides, [len(piece) for piece in scene.faces])
    for both_sides in (False, True):
        chosen = np.flatnonzero(~clear & (both == both_sides))
        rasterise(corners, near, faces, chosen, both_sides, face_at, weight_at, near_at)
    front, front_weight, front_near = (
        np.full(shape, NOTHING, np.int32),
        np.zeros((*shape, 2), np.float32),
        near_at.copy(),
    )
    rasterise(corners, near, faces, np.flatnonzero(clear), True, front, front_weight, front_near)
    layers = ((face_at, weight_at), (front, front_weight))
    return Drawn(points, np.concatenate(scene.normals), np.concatenate(scene.places), faces, material, near_at, layers)
