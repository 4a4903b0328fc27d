"""Rendering of photographs against the rate that was set for it, and of triangles against OpenCV's polygons.

The peer is what one would write first: faces sorted by depth and painted one after another with `cv2.fillConvexPoly`.
It paints the same triangles in the same pixels, without depth or weights. Everything runs on one core. Processor time
counts: other processes' turns do not.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

import cv2
import numpy as np
import pytest

from pipeline.rendering import Model, Variation, person, photo
from pipeline.rendering.exact.raster import NOTHING, STEPS, rasterise
from pipeline.rendering.scene.camera import view_of
from pipeline.rendering.sets.folder import make_people
from pipeline.rendering.sets.source import RenderedSource
from pipeline.shards.making.plan import make_plan
from pipeline.shards.making.sequential import make_set
from tests.benchmarks.results import write
from tests.renderer import needs_renderer

PEOPLE, EACH, ROUNDS = 12, 8, 5
IN_A_SET = 20  # people, and images of each
SIDE = 224
WANTED = 100.0  # images a second on a core


def processor_seconds(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The least of some runs."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@needs_renderer
def test_rendering(model: Model, tmp_path: Path) -> None:
    people = [person(model, 1, number) for number in range(PEOPLE)]
    for who in people:
        photo(model, who, 0)  # compiles
    # Each by itself, so that a moment's disturbance falls out.
    of_people = [processor_seconds(partial(person, model, 1, number)) for number in range(PEOPLE)]
    of_photos = [processor_seconds(partial(photo, model, who, image)) for who in people for image in range(EACH)]
    of_person, of_photo = mean(of_people), mean(of_photos)
    source = RenderedSource(model, 1, 0, IN_A_SET, IN_A_SET, (112, 112), Variation())
    of_set, of_folder = written(source, tmp_path / "set", write_set), written(source, tmp_path / "folder", make_people)
    corners, near = projected(model)
    ours = processor_seconds(lambda: our_triangles(model, corners, near))
    theirs = processor_seconds(lambda: painted_triangles(model, corners, near))
    write(
        "rendering",
        {
            "images_per_second_per_core": 1 / of_photo,
            "with_the_person": {f"{each} images each": 1 / (of_photo + of_person / each) for each in (4, 8, 20)},
            "milliseconds": {"photo": 1e3 * of_photo, "person": 1e3 * of_person},
            "written_per_second_per_core": {"set, person by person and shuffled": 1 / of_set, "folder": 1 / of_folder},
            "ratio_to_wanted": 1 / of_photo / WANTED,
            "triangles_milliseconds": {"ours": 1e3 * ours, "painter's, OpenCV": 1e3 * theirs, "ratio": theirs / ours},
        },
    )


def written(source: RenderedSource, out: Path, making: Callable[[RenderedSource, Path], object]) -> float:
    """Processor seconds an image, the lesser of two runs."""
    folders = iter((out / "first", out / "second"))
    return processor_seconds(lambda: making(source, next(folders)), 2) / len(source.labels)


def write_set(source: RenderedSource, out: Path) -> None:
    """Both writings of a set: person by person, and shuffled."""
    make_set(make_plan(source, out, seed=1, samples_per_tar=1000, size=source.size), workers=1)


def projected(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """[V, 2] corners in steps and [V] nearness of a head, from the front."""
    who = person(model, 1, 0)
    view = view_of(model, who.shape, pose=(10, 0, 0), distance=8, size=(112, 112), error=np.zeros((5, 2)))
    where, near = view.pixels(view.seen(who.shape))
    return np.round(((where + 0.5) * 2 - 0.5) * STEPS).astype(np.int32), near


def our_triangles(model: Model, corners: np.ndarray, near: np.ndarray) -> None:
    face_at, weight_at = np.full((SIDE, SIDE), NOTHING, np.int32), np.zeros((SIDE, SIDE, 2), np.float32)
    near_at = np.zeros((SIDE, SIDE), np.float32)
    rasterise(corners, near, model.faces, np.arange(len(model.faces)), False, face_at, weight_at, near_at)
    assert (face_at != NOTHING).any()


def painted_triangles(model: Model, corners: np.ndarray, near: np.ndarray) -> None:
    image = np.full((SIDE, SIDE), NOTHING, np.int32)
    triangles = corners[model.faces]
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    front = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0]) < 0
    kept = np.flatnonzero(front & (triangles.max(1) > 0).all(1) & (triangles.min(1) < SIDE * STEPS).all(1))
    for face in kept[np.argsort(near[model.faces[kept]].mean(1))]:
        cv2.fillConvexPoly(image, triangles[face], int(face), cv2.LINE_8, 8)
    assert (image != NOTHING).any()
