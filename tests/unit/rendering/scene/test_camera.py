import math

import numpy as np
import pytest

from pipeline.rendering import Model, Variation, person, photo
from pipeline.rendering.exact.draws import Draws
from pipeline.rendering.scene.camera import rotation, sine_and_cosine
from pipeline.shards.alignment.similarity import reference_points
from tests.renderer import needs_renderer

pytestmark = needs_renderer


@pytest.mark.parametrize("degrees", [-180.0, -91.5, -30.0, -0.01, 0.0, 12.25, 89.0, 135.0, 180.0])
def test_sines_are_the_librarys_to_the_last_digits(degrees: float) -> None:
    sine, cosine = sine_and_cosine(degrees)
    assert sine == pytest.approx(math.sin(math.radians(degrees)), abs=1e-14)
    assert cosine == pytest.approx(math.cos(math.radians(degrees)), abs=1e-14)


def test_a_turn_keeps_lengths_and_goes_the_way_it_says() -> None:
    matrix = rotation(25, -10, 7).astype(np.float64)
    assert matrix @ matrix.T == pytest.approx(np.eye(3), abs=1e-6)
    assert np.linalg.det(matrix) == pytest.approx(1, abs=1e-6)
    ahead, up = np.array([0, 0, 1.0]), np.array([0, 1.0, 0])
    assert (rotation(20, 0, 0) @ ahead)[0] > 0.3  # yaw: to the image's right
    assert (rotation(0, 20, 0) @ ahead)[1] > 0.3  # pitch: up
    assert (rotation(0, 0, 20) @ up)[0] > 0.3  # roll: to the right


@pytest.mark.parametrize("size", [(112, 112), (112, 96)])
@pytest.mark.parametrize("image", [0, 1, 2])
def test_landmarks_are_where_the_vertices_are_projected(model: Model, size: tuple[int, int], image: int) -> None:
    """By an independent float64 computation of pose, perspective and alignment."""
    who = person(model, 3, 4)
    found = photo(model, who, image, size=size, variation=Variation(expression=0, alignment=0))
    shape = who.shape.astype(np.float64)
    marks = np.stack([shape[group].mean(0) for group in model.landmarks])
    marks = marks - (marks[0] + marks[1]) / 2
    yaw, pitch, roll = (math.radians(float(found.attributes[name])) for name in ("yaw", "pitch", "roll"))
    about_y = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
    about_z = np.array([[math.cos(roll), math.sin(roll), 0], [-math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    x, y, z = about_z @ about_x @ about_y @ marks.T
    # The attribute is rounded; the distance itself is the first number that the camera draws.
    distance = Draws("camera", 3, 4, image).uniform(4.5, 18)
    plane = np.stack([x, -y], 1) * (distance / (distance - z))[:, None]
    rows = np.concatenate([
        np.stack([plane[:, 0], -plane[:, 1], np.ones(5), np.zeros(5)], 1),
        np.stack([plane[:, 1], plane[:, 0], np.zeros(5), np.ones(5)], 1),
    ])  # fmt: skip
    target = reference_points(*size)
    solved, *_ = np.linalg.lstsq(rows, np.concatenate([target[:, 0], target[:, 1]]), rcond=None)
    wanted = (rows @ solved).reshape(2, 5).T
    assert found.landmarks == pytest.approx(wanted, abs=1e-3)
    assert found.attributes["distance"] == pytest.approx(distance, abs=0.006)
