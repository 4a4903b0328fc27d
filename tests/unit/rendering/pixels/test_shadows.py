import numpy as np

from pipeline.rendering.pixels.shadows import dark_corners
from tests.renderer import needs_renderer

pytestmark = needs_renderer


def test_a_corner_behind_something_near_is_dark() -> None:
    near_at = np.full((40, 40), 10 / 10.1, np.float32)
    near_at[:, 20:] = 10 / 10.0  # a step of a tenth of a decimetre towards the camera
    found = dark_corners(near_at, 10.0, 57.0, 2)
    assert found[10, 9] < 0.95 and found[10, 1] == 1 and found[10, 12] == 1
