import numpy as np
import pytest

from pipeline.rendering import Model, Person
from pipeline.rendering.exact.raster import NOTHING
from pipeline.rendering.pixels.drawing import drawn_scene, enlarged, shows
from pipeline.rendering.scene.camera import View
from pipeline.rendering.scene.materials import CAP, CLOTH, HAIR, LASHES, SKIN
from pipeline.rendering.scene.scene import scene_of
from tests.renderer import needs_renderer

pytestmark = needs_renderer


def test_what_is_at_a_pixel_is_projected_there(model: Model, who: Person, view: View) -> None:
    bare = np.zeros(len(who.shape), np.bool_)
    drawn = drawn_scene(scene_of(model, who.shape, who.worn[0], view, bare), 112, 112, 2)
    face_at, weight_at = drawn.layers[0]
    rows, columns = np.nonzero(face_at >= 0)
    assert len(rows) > 20_000
    corners = drawn.points[drawn.faces[face_at[rows, columns]]].astype(np.float64)
    of_b, of_c = weight_at[rows, columns, 0:1], weight_at[rows, columns, 1:2]
    points = (1 - of_b - of_c) * corners[:, 0] + of_b * corners[:, 1] + of_c * corners[:, 2]
    where, near = view.pixels(points.astype(np.float32))
    # In fine pixels; corners lie on 256ths, and weights are of the picture, not of the depth.
    off = np.abs(where * 2 + 0.5 - np.stack([columns, rows], 1))
    assert off.max() < 0.25 and off.mean() < 0.01
    assert near == pytest.approx(drawn.near_at[rows, columns], rel=1e-3)
    seen = set(np.unique(drawn.material[face_at[rows, columns]]))
    assert {SKIN, HAIR, CAP, CLOTH} <= seen | {CLOTH} and LASHES not in seen
    skin = np.where(face_at >= 0, drawn.material[face_at], 255)[::2, ::2] == SKIN
    assert (shows(face_at, drawn.material, SKIN, 2) == skin).all() and 2000 < skin.sum() < 10_000
    lashes = drawn.layers[1][0]
    assert set(np.unique(drawn.material[lashes[lashes >= 0]])) == {LASHES}


def test_where_nothing_is_no_material_shows() -> None:
    face_at = np.full((4, 4), NOTHING, np.int32)
    face_at[0, 2] = 0
    assert shows(face_at, np.array([SKIN], np.uint8), SKIN, 2).tolist() == [[False, True], [False, False]]


def test_a_background_is_enlarged_pixel_by_pixel() -> None:
    picture = np.random.default_rng(0).uniform(size=(4, 5, 3)).astype(np.float32)
    assert (enlarged(picture, 3) == picture.repeat(3, 0).repeat(3, 1)).all()
