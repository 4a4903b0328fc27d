import numpy as np
import pytest

from pipeline.rendering.exact.draws import Draws
from pipeline.rendering.scene.background import KINDS, between, drawn_background, softened
from pipeline.rendering.scene.lighting import PLAIN, drawn_lighting
from tests.renderer import needs_renderer

pytestmark = needs_renderer


def test_every_background_and_light_is_drawn_and_finite() -> None:
    backgrounds, lights = set(), {PLAIN.kind}
    for number in range(60):
        picture, kind = drawn_background(Draws("background", number), 16, 12)
        assert picture.shape == (16, 12, 3) and (picture > 0).all() and (picture <= 1.5).all()
        lighting = drawn_lighting(Draws("light", number))
        assert np.linalg.norm(lighting.lights[:, :3], axis=1) == pytest.approx(np.ones(len(lighting.lights)), abs=1e-5)
        assert lighting.axes @ lighting.axes.T == pytest.approx(np.eye(3), abs=1e-5)
        backgrounds.add(kind)
        lights.add(lighting.kind)
    assert backgrounds == set(KINDS) and len(lights) == 8


def test_noise_goes_smoothly_between_the_corners_of_its_cells() -> None:
    grid = np.random.default_rng(0).normal(size=(5, 5, 2))
    found = between(grid, 16, 12)
    assert found.shape == (16, 12, 2)
    assert found[::4, ::3] == pytest.approx(grid[:4, :4], abs=1e-12)
    part = 0.25 * 0.25 * (3 - 2 * 0.25)
    assert found[1, 3] == pytest.approx((1 - part) * grid[0, 1] + part * grid[1, 1], abs=1e-12)


@pytest.mark.parametrize("radius", [1, 4])
def test_what_is_out_of_focus_is_the_mean_over_a_square_twice(radius: int) -> None:
    picture = np.random.default_rng(1).uniform(size=(9, 14, 3))
    wanted = picture
    for _ in range(2):
        wide = np.pad(wanted, [(radius, radius), (radius, radius), (0, 0)], mode="edge")
        square = 2 * radius + 1
        wanted = np.array([[wide[j : j + square, i : i + square].mean((0, 1)) for i in range(14)] for j in range(9)])
    assert softened(picture, radius) == pytest.approx(wanted, abs=1e-12)
