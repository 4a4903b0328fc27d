from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.rendering.exact.raster import NOTHING, STEPS, inside, nearest_first, not_hidden, rasterise

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


@pytest.mark.parametrize("off", [300, 0])  # 0: edges along rows and columns of pixels
def test_faces_that_share_edges_leave_no_pixel_out_and_have_none_twice(off: int) -> None:
    random = np.random.default_rng(3)
    count = 6
    grid = np.stack(np.meshgrid(np.arange(count), np.arange(count), indexing="xy"), 2) * 4 * STEPS
    grid[1:-1, 1:-1] += random.integers(-off, off + 1, (count - 2, count - 2, 2))
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


def many(seed: int, side: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """Corners, nearness and faces of triangles all over an image, many of them equally near."""
    random = np.random.default_rng(seed)
    middles = random.integers(-2 * STEPS, (side + 2) * STEPS, (count, 1, 2))
    corners = (middles + random.integers(-9 * STEPS, 9 * STEPS, (count, 3, 2))).reshape(-1, 2).astype(np.int32)
    near = random.integers(8, 24, (count, 1)) + random.integers(0, 3, (count, 3))
    return corners, (near.ravel() / 16).astype(np.float32), np.arange(3 * count, dtype=np.int32).reshape(-1, 3)


def test_the_order_in_which_triangles_are_drawn_does_not_show() -> None:
    corners, near, faces = many(4, 40, 300)
    near = np.repeat(near[::3], 3)  # flat: equally near wherever two of a distance meet
    wanted = drawn(corners, near, faces, 40, True)
    face_at, weight_at = np.full((40, 40), NOTHING, np.int32), np.zeros((40, 40, 2), np.float32)
    near_at = np.zeros((40, 40), np.float32)
    for part in (np.arange(200, 300), np.arange(100), np.arange(100, 200)):
        rasterise(corners, near, faces, part, True, face_at, weight_at, near_at)
    assert len(np.unique(face_at)) > 20
    assert (face_at == wanted[0]).all() and (weight_at == wanted[1]).all() and (near_at == wanted[2]).all()


def test_what_counts_as_hidden_would_not_be_drawn() -> None:
    corners, near, faces = many(5, 44, 1200)
    face_at, weight_at, near_at = drawn(corners, near, faces[:600], 44, True)
    seen = not_hidden(corners, near, faces, np.arange(600, 1200), near_at).tolist()
    shown = []
    for face in range(600, 1200):
        after = near_at.copy()
        rasterise(corners, near, faces, np.array([face]), True, face_at.copy(), weight_at.copy(), after)
        shown += [face] * bool((after != near_at).any())
    assert len(shown) > 50 and set(shown) <= set(seen)
    assert len(seen) < 500 and seen == sorted(seen)


@pytest.mark.parametrize("step", [-98 * STEPS, -49 * STEPS, -STEPS, 0, STEPS, 49 * STEPS, 98 * STEPS])
def test_a_row_begins_and_ends_where_its_edge_says(step: int) -> None:
    for edge in range(-600 * STEPS, 600 * STEPS, STEPS // 2):
        first, last = inside(edge, step, 1 / step if step else 0.0, 9)
        wanted = [k for k in range(10) if edge + k * step >= 0]
        assert list(range(max(first, 0), last + 1)) == wanted


def test_parts_go_from_near_to_far_and_keep_the_order() -> None:
    near = np.random.default_rng(6).normal(size=3000).astype(np.float32)
    faces = np.arange(3000, dtype=np.int32).reshape(-1, 3)
    parts = nearest_first(near, faces, np.arange(0, 1000, 2), 4)
    nearest = near[faces].max(1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(0, 1000, 2))
    for first, second in pairwise(parts):
        assert (np.diff(first) > 0).all() and 60 < len(first) < 190
        assert nearest[first].min() > nearest[second].max() - np.ptp(nearest) / 50
    assert [len(part) for part in nearest_first(np.ones(9, np.float32), faces[:3], np.arange(3), 2)] == [3, 0]
