import numpy as np
import pytest

from pipeline.rendering import Model
from pipeline.rendering.people.person import Person
from pipeline.rendering.scene.accessories import HATS, covered_by
from pipeline.rendering.scene.camera import View
from pipeline.rendering.scene.scene import scene_of
from tests.renderer import needs_renderer

pytestmark = needs_renderer


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
