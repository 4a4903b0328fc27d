import numpy as np
import pytest

from pipeline.rendering.pixels.shadows import bounds_of, dark_corners
from tests.renderer import needs_renderer

pytestmark = needs_renderer


def test_a_corner_behind_something_near_is_dark() -> None:
    near_at = np.full((40, 40), 10 / 10.1, np.float32)
    near_at[:, 20:] = 10 / 10.0  # a step of a tenth of a decimetre towards the camera
    found = dark_corners(near_at, 10.0, 57.0, 2)
    assert found[10, 9] < 0.95 and found[10, 1] == 1 and found[10, 12] == 1


def test_corners_see_what_a_slow_count_of_the_neighbours_says() -> None:
    random = np.random.default_rng(0)
    near_at = (10 / random.uniform(9.6, 10.1, (40, 32))).astype(np.float32)
    near_at[random.uniform(size=near_at.shape) < 0.2] = 0
    near_at[::2, 6] = 0
    found = dark_corners(near_at, 10.0, 57.0, 2)
    inner = [(3, 0), (2, 2), (0, 3), (-2, 2), (-3, 0), (-2, -2), (0, -3), (2, -2)]
    outer = [(8, 3), (6, -6), (0, 8), (-6, 6), (-8, -3), (-6, -6), (0, -8), (6, 6)]
    for row in range(20):
        for column in range(16):
            here, total = float(near_at[2 * row, 2 * column]), 0.0
            for reach, ring in ((0.06, inner), (0.16, outer)):
                for across, down in ring:
                    j, i = 2 * row + 2 * down, 2 * column + 2 * across
                    there = float(near_at[j, i]) if 0 <= j < 40 and 0 <= i < 32 else 0.0
                    closer = 10 / here - 10 / there if here and there else 0.0
                    if closer > 0.2 * reach:
                        total += min(1.0, closer / reach) * max(0.0, 1 - max(0.0, closer - 0.3) / 0.4)
            assert found[row, column] == pytest.approx(max(0.25, 1 - total / 16), abs=1e-6)


def test_bounds_are_those_of_the_sixteen_pixels_around() -> None:
    shadow = np.random.default_rng(2).normal(size=(12, 12)).astype(np.float32)
    found = bounds_of(shadow)
    for row in range(1, 10):
        for column in range(1, 10):
            around = shadow[row - 1 : row + 3, column - 1 : column + 3]
            assert found[row, column].tolist() == [around.min(), around.max()]
