"""A scene drawn: which triangle each pixel sees, and which lies in front of it that one sees through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.compiling import compiled
from pipeline.rendering.exact.raster import NOTHING, STEPS, nearest_first, not_hidden, rasterise
from pipeline.rendering.scene.materials import LASHES, LENS
from pipeline.rendering.scene.scene import Scene

_PARTS = 6  # in which much hair is drawn


@dataclass(frozen=True)
class Drawn:
    """A scene in pixels: what is seen, and what is seen through in front of it."""

    points: NDArray[np.float32]
    attributes: NDArray[np.float32]  # [V, 9] points, normals, places and a column of zeros
    faces: NDArray[np.int32]
    material: NDArray[np.uint8]
    near_at: NDArray[np.float32]
    layers: tuple[tuple[NDArray[np.int32], NDArray[np.float32]], ...]  # face_at and weight_at of either


def drawn_scene(scene: Scene, height: int, width: int, fine: int) -> Drawn:
    """Rasterise a scene for a crop of height x width pixels of `fine` x `fine` each."""
    points, faces, material = np.concatenate(scene.points), np.concatenate(scene.faces), np.concatenate(scene.material)
    where, near = scene.view.pixels(points)
    corners = on_steps(where, fine)
    shape = (height * fine, width * fine)
    # Weights are there where a face is.
    face_at, weight_at = np.full(shape, NOTHING, np.int32), np.empty((*shape, 2), np.float32)
    near_at = np.zeros(shape, np.float32)
    clear = (material == LASHES) | (material == LENS)
    both = np.repeat(scene.both_sides, [len(piece) for piece in scene.faces])
    rasterise(corners, near, faces, np.flatnonzero(~clear & ~both), False, face_at, weight_at, near_at)
    # Most of the hair lies behind other hair: the nearest first, of the rest only what can be seen still.
    strands_at = np.full(shape, NOTHING, np.int32)
    strands = np.flatnonzero(~clear & both)
    for part in nearest_first(near, faces, strands, 1 + min(len(strands) // 1000, _PARTS - 1)):
        seen = not_hidden(corners, near, faces, part, near_at)
        rasterise(corners, near, faces, seen, True, strands_at, weight_at, near_at)
    np.copyto(face_at, strands_at, where=strands_at != NOTHING)
    front, front_weight = np.full(shape, NOTHING, np.int32), np.empty((*shape, 2), np.float32)
    rasterise(corners, near, faces, np.flatnonzero(clear), True, front, front_weight, near_at.copy())
    layers = ((face_at, weight_at), (front, front_weight))
    attributes = side_by_side(points, np.concatenate(scene.normals), np.concatenate(scene.places))
    return Drawn(points, attributes, faces, material, near_at, layers)


@compiled
def on_steps(where: NDArray[np.float64], fine: int) -> NDArray[np.int32]:
    """[V, 2] places in pixels of the crop as `rasterise` takes them, whole steps of the `fine` times `fine` drawn."""
    out = np.empty(where.shape, np.int32)
    for vertex in range(where.shape[0]):
        for k in range(2):
            out[vertex, k] = np.int32(np.rint(((where[vertex, k] + 0.5) * fine - 0.5) * STEPS))
    return out


@compiled
def shows(face_at: NDArray[np.int32], material: NDArray[np.uint8], kind: int, fine: int) -> NDArray[np.bool_]:
    """[H, W] where a face of a material is seen, at the first of the `fine` times `fine` drawn pixels of each."""
    out = np.zeros((face_at.shape[0] // fine, face_at.shape[1] // fine), np.bool_)
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            face = face_at[row * fine, column * fine]
            out[row, column] = face != NOTHING and material[face] == kind
    return out


@compiled
def enlarged(picture: NDArray[np.float32], fine: int) -> NDArray[np.float32]:
    """[H * fine, W * fine, 3] a picture [H, W, 3], each pixel as so many drawn ones."""
    out = np.empty((picture.shape[0] * fine, picture.shape[1] * fine, 3), np.float32)
    for row in range(out.shape[0]):
        for column in range(picture.shape[1]):
            for k in range(3):
                level = picture[row // fine, column, k]
                for i in range(fine):
                    out[row, column * fine + i, k] = level
    return out


@compiled
def side_by_side(
    points: NDArray[np.float32], normals: NDArray[np.float32], places: NDArray[np.float32]
) -> NDArray[np.float32]:
    """[V, 9] three columns, three, two and one of zeros."""
    out = np.zeros((len(points), 9), np.float32)
    for vertex in range(len(points)):
        for k in range(3):
            out[vertex, k], out[vertex, 3 + k] = points[vertex, k], normals[vertex, k]
        out[vertex, 6], out[vertex, 7] = places[vertex, 0], places[vertex, 1]
    return out
