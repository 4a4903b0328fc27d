"""Vertices moved by targets, and what follows from where they are: centres and normals."""

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.compiling import compiled


@compiled
def moved(rest: NDArray[np.float32], targets: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """[V, 3] `rest` with each target [T, V, 3] added by its weight [T], in the order of their numbers."""
    out = rest.copy()
    for target in range(len(weights)):
        weight = weights[target]
        if weight != 0:
            for vertex in range(out.shape[0]):
                for k in range(3):
                    out[vertex, k] += weight * targets[target, vertex, k]
    return out


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
