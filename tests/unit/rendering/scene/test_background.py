import numpy as np
import pytest

from pipeline.rendering.exact.draws import Draws
from pipeline.rendering.scene.background import KINDS, drawn_background
from pipeline.rendering.scene.lighting import PLAIN, drawn_lighting


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
