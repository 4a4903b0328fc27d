import numpy as np
import pytest

from pipeline.rendering.exact.blending import Moves, double_areas, mean_of, moved, turned, vertex_normals
from pipeline.rendering.scene.camera import rotation
from tests.renderer import needs_renderer

pytestmark = needs_renderer


def size_of_crosses(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (points[faces[:, k]] for k in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1)


def test_blending_and_normals_are_the_sums_that_they_say() -> None:
    random = np.random.default_rng(0)
    rest = random.normal(size=(50, 3)).astype(np.float32)
    targets = random.normal(size=(6, 50, 3)).astype(np.float32)
    targets[random.uniform(size=(6, 50)) < 0.5] = 0  # what a target leaves alone
    weights = random.normal(size=6).astype(np.float32)
    wanted = rest + np.tensordot(weights.astype(np.float64), targets.astype(np.float64), 1)
    few = Moves.of(list(targets))
    assert len(few) == 6 and 100 < len(few.vertices) < 200
    assert moved(rest, few, weights) == pytest.approx(wanted, abs=1e-4)
    faces = random.integers(0, 50, (80, 3)).astype(np.int32)
    points = rest.astype(np.float64)
    normals = np.zeros((50, 3))
    for face in faces:
        a, b, c = points[face]
        for corner in face:
            normals[corner] += np.cross(b - a, c - a)
    size = np.linalg.norm(normals, axis=1, keepdims=True)
    wanted = np.divide(normals, size, out=np.zeros_like(normals), where=size > 1e-9)
    found = vertex_normals(rest, faces)
    solid = size[:, 0] > 1e-3
    assert found[solid] == pytest.approx(wanted[solid], abs=1e-4)
    assert double_areas(rest, faces) == pytest.approx(size_of_crosses(points, faces), abs=1e-5)
    matrix = rotation(30, 20, 10)
    assert turned(rest, matrix, rest[0]) == pytest.approx((points - points[0]) @ matrix.astype(np.float64).T, abs=1e-5)
    assert mean_of(rest, np.array([1, 5, 7])) == pytest.approx(points[[1, 5, 7]].mean(0), abs=1e-6)
