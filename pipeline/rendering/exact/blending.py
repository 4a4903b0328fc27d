"""Vertices moved by targets, and what follows from where they are: centres and normals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.compiling import compiled


@dataclass(frozen=True, eq=False)
class Moves:
    """Targets, each as the vertices that it moves: most leave most of a head alone."""

    start: NDArray[np.int64]  # [T + 1] where each begins in the two others
    vertices: NDArray[np.int32]  # [M]
    moves: NDArray[np.float32]  # [M, 3]

    @staticmethod
    def of(targets: Sequence[NDArray[np.float32]]) -> Moves:
        """Those of targets [V, 3] that move all vertices, if most of them by nothing."""
        moving = [np.flatnonzero(target.any(1)) for target in targets]
        start = np.cumsum([0, *(len(vertices) for vertices in moving)])
        moves = np.concatenate([target[vertices] for target, vertices in zip(targets, moving, strict=True)])
        return Moves(start, np.concatenate(moving).astype(np.int32), moves)

    def __len__(self) -> int:
        return len(self.start) - 1


def moved(rest: NDArray[np.float32], targets: Moves, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """[V, 3] `rest` with each target added by its weight [T], in the order of their numbers."""
    out = rest.copy()
    add_moves(out, targets.start, targets.vertices, targets.moves, weights)
    return out


@compiled
def add_moves(
    points: NDArray[np.float32],
    start: NDArray[np.int64],
    vertices: NDArray[np.int32],
    moves: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> None:
    """Add to `points` [V, 3] the targets of `Moves` by their weights [T]."""
    for target in range(len(weights)):
        weight = weights[target]
        if weight != 0:
            for at in range(start[target], start[target + 1]):
                vertex = vertices[at]
                for k in range(3):
                    points[vertex, k] += weight * moves[at, k]


@compiled
def turned(
    points: NDArray[np.float32], matrix: NDArray[np.float32], centre: NDArray[np.float32]
) -> NDArray[np.float32]:
    """[V, 3] points about `centre` [3], which becomes the origin, turned by a matrix [3, 3]."""
    out = np.empty_like(points)
    for vertex in range(points.shape[0]):
        x = points[vertex, 0] - centre[0]
        y = points[vertex, 1] - centre[1]
        z = points[vertex, 2] - centre[2]
        for k in range(3):
            out[vertex, k] = matrix[k, 0] * x + matrix[k, 1] * y + matrix[k, 2] * z
    return out


@compiled
def vertex_normals(points: NDArray[np.float32], faces: NDArray[np.int32]) -> NDArray[np.float32]:
    """[V, 3] unit normals: those of the faces [F, 3] around a vertex, weighted by their areas."""
    out = np.zeros_like(points)
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ux, uy, uz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        vx, vy, vz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for vertex in (a, b, c):
            out[vertex, 0] += nx
            out[vertex, 1] += ny
            out[vertex, 2] += nz
    for vertex in range(out.shape[0]):
        x, y, z = out[vertex, 0], out[vertex, 1], out[vertex, 2]
        length = np.sqrt(x * x + y * y + z * z)
        if length > 0:
            for k in range(3):
                out[vertex, k] /= length
    return out


@compiled
def mean_of(points: NDArray[np.float32], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """[3] the middle of some of the points [V, 3], added one after another."""
    total = np.zeros(3)
    for vertex in group:
        for k in range(3):
            total[k] += points[vertex, k]
    return total / len(group)


@compiled
def double_areas(points: NDArray[np.float32], faces: NDArray[np.int32]) -> NDArray[np.float64]:
    """[F] twice the areas of faces [F, 3] between points [V, 3]."""
    out = np.empty(len(faces))
    for face in range(len(faces)):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, az = np.float64(points[a, 0]), np.float64(points[a, 1]), np.float64(points[a, 2])
        ux, uy, uz = points[b, 0] - ax, points[b, 1] - ay, points[b, 2] - az
        vx, vy, vz = points[c, 0] - ax, points[c, 1] - ay, points[c, 2] - az
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        out[face] = np.sqrt(x * x + y * y + z * z)
    return out
