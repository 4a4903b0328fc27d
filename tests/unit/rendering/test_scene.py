import numpy as np
import pytest

from pipeline.rendering import Model, person
from pipeline.rendering.accessories import HATS, covered_by
from pipeline.rendering.camera import View, view_of
from pipeline.rendering.materials import CAP, CLOTH, HAIR, LASHES, SKIN
from pipeline.rendering.person import Person
from pipeline.rendering.scene import drawn_scene, scene_of
from tests.renderer import needs_renderer

pytestmark = needs_renderer


@pytest.fixture(scope="module")
def who(model: Model) -> Person:
    """Somebody with hair."""
    return next(one for one in (person(model, 1, number) for number in range(20)) if len(one.worn[0].locks.width) > 500)


@pytest.fixture(scope="module")
def view(model: Model, who: Person) -> View:
    return view_of(model, who.shape, pose=(15, 5, 3), distance=8, size=(112, 112), error=np.zeros((5, 2)))


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
    lashes = drawn.layers[1][0]
    assert set(np.unique(drawn.material[lashes[lashes >= 0]])) == {LASHES}


@pytest.mark.parametrize("hat", HATS)
def test_a_hat_presses_the_hair_down(model: Model, who: Person, view: View, hat: str) -> None:
    hatted, worn = covered_by(model, hat), who.worn[0]
    assert 50 < hatted.sum() < len(hatted) - 50
    scene = scene_of(model, who.shape, worn, view, hatted)
    head, shell = scene.points[0], scene.points[1]
    assert (shell[hatted] == head[hatted]).all()
    open_ = ~hatted & (worn.cap > 0.001)
    assert (np.abs(shell - head)[open_].max(1) > 0).all()
    shown = len(scene.points[2]) if len(scene.points) > 2 else 0
    assert shown < len(scene_of(model, who.shape, worn, view, np.zeros_like(hatted)).points[2])
    assert len(scene_of(model, who.shape, worn, view, np.ones_like(hatted)).points) == 1


def test_the_eyes_and_the_mouth_stay_free(model: Model) -> None:
    for hat in HATS:
        covered = covered_by(model, hat)
        for group in model.landmarks:
            assert not covered[group].any(), hat
