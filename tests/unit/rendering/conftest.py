import pytest

from pipeline.rendering import Model


@pytest.fixture(scope="session")
def model() -> Model:
    return Model.load()
