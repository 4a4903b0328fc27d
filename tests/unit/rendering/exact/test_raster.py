from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.rendering.exact.raster import NOTHING, STEPS, rasterise

Drawn = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]


def drawn(
    corners: NDArray[np.int32], near: NDArray[np.float32], faces: NDArray[np.int32], side: int, both: bool
) -> Drawn:
    face_at, weight_at = np.full((side, side), NOTHING, np.int32), np.zeros((side, side, 2), np.float32)
    near_at = np.zeros((side, side), np.float32)
    rasterise(corners, near, faces, np.arange(len(faces)), both, face_at, weight_at, near_at)
    return face_at, weight_at, near_at


def exactly(
    corners: NDArray[np.int32], near: NDArray[np.float32], faces: NDArray[np.int32], side: int, both: bool
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], tuple[float, ...]]]:
    """Which face is nearest at each pixel, and its nearness and weights, in fractions and without edge functions."""
    best: dict[tuple[int, int], Fraction] = {}
    found: dict[tuple[int, int], int] = {}
    what: dict[tuple[int, int], tuple[float, ...]] = {}
    for number, face in enumerate(faces):
        (ax, ay), (bx, by), (cx, cy) = ([Fraction(int(v), STEPS) for v in corners[k]] for k in face)
        double = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if double == 0 or (double > 0 and not both):
            continue
        for row in range(side):
            for column in range(side):
                # A pixel on an edge goes to the face that a point a little up and left of it is in... seen from
                # the centre: tiny steps right and down must be inside, the step down being the tinier.
                weights = []
                for step in (Fraction(0), Fraction(1, 10**9)):
                    x, y = column + step, row + step * step
                    of_b = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / double
                    of_c = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / double
                    weights.append((1 - of_b - of_c, of_b, of_c))
                if min(weights[0]) < 0 or min(weights[1]) < 0:
                    continue
                nearness = sum(
                    (w * Fraction(float(near[k])) for w, k in zip(weights[0], face, strict=True)), Fraction(0)
                )
                if nearness > best.get((row, column), Fraction(0)):
                    best[row, column], found[row, column] = nearness, number
                    what[row, column] = (float(nearness), float(weights[0][1]), float(weights[0][2]))
    return found, what


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_as_exact_fractions_have_it(seed: int, both: bool) -> None:
    random = np.random.default_rng(seed)
    side = 12
    corners = random.integers(-3 * STEPS, 15 * STEPS, (24, 2)).astype(np.int32)
    corners[:12] = corners[:12] // 256 * 256  # corners and edges on the pixels' centres
    near = random.uniform(0.5, 1.5, 24).astype(np.float32)
    faces = random.integers(0, 24, (14, 3)).astype(np.int32)
    face_at, weight_at, near_at = drawn(corners, near, faces, side, both)
    found, what = exactly(corners, near, faces, side, both)
    for row in range(side):
        for column in range(side):
            assert face_at[row, column] == found.get((row, column), NOTHING)
            if (row, column) in what:
                nearness, of_b, of_c = what[row, column]
                assert near_at[row, column] == pytest.approx(nearness, rel=1e-5)
                assert weight_at[row, column] == pytest.approx([of_b, of_c], abs=1e-5)


def test_faces_that_share_edges_leave_no_pixel_out_and_have_none_twice() -> None:
    random = np.random.default_rng(3)
    count = 6
    grid = np.stack(np.meshgrid(np.arange(count), np.arange(count), indexing="xy"), 2) * 4 * STEPS
    grid[1:-1, 1:-1] += random.integers(-300, 300, (count - 2, count - 2, 2))
    i, j = (k.ravel() for k in np.meshgrid(np.arange(count - 1), np.arange(count - 1), indexing="ij"))
    a, b, c, d = i * count + j, i * count + j + 1, (i + 1) * count + j + 1, (i + 1) * count + j
    faces = np.concatenate([np.stack([a, c, b], 1), np.stack([a, d, c], 1)]).astype(np.int32)
    corners = grid.reshape(-1, 2).astype(np.int32)
    side = 4 * (count - 1)
    times = np.zeros((side, side), int)
    for face in range(len(faces)):
        face_at, _, _ = drawn(corners, np.ones(len(corners), np.float32), faces[face : face + 1], side, False)
        times += face_at != NOTHING
    assert (times == 1).all()


def test_what_is_seen_from_behind_is_left_out() -> None:
    corners = np.array([[0, 0], [0, 8 * STEPS], [8 * STEPS, 0]], np.int32)
    faces, near = np.array([[0, 1, 2]], np.int32), np.ones(3, np.float32)
    assert (drawn(corners, near, faces, 8, False)[0] == 0).any()
    assert (drawn(corners, near, faces[:, ::-1].copy(), 8, False)[0] == NOTHING).all()
    assert (drawn(corners, near, faces[:, ::-1].copy(), 8, True)[0] == 0).any()
