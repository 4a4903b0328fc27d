import numpy as np
import pytest

from pipeline.rendering import Model, Person, person
from pipeline.rendering.scene.camera import View, view_of


@pytest.fixture(scope="session")
def model() -> Model:
    return Model.load()


@pytest.fixture(scope="session")
def who(model: Model) -> Person:
    """Somebody with hair."""
    return next(one for one in (person(model, 1, number) for number in range(20)) if len(one.worn[0].locks.width) > 500)


@pytest.fixture(scope="session")
def view(model: Model, who: Person) -> View:
    return view_of(model, who.shape, pose=(15, 5, 3), distance=8, size=(112, 112), error=np.zeros((5, 2)))
