"""A photograph of a person who does not exist, aligned as the project's crops are."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.rendering.blending import moved, vertex_normals
from pipeline.rendering.camera import View, landmarks_of, view_of
from pipeline.rendering.draws import Draws
from pipeline.rendering.model import Model, Vectors
from pipeline.rendering.person import Person
from pipeline.rendering.raster import NOTHING, STEPS, rasterise
from pipeline.rendering.shading import shade
from pipeline.shards.alignment.similarity import Points

_FINE = 2  # pixels a side that are drawn for one of the crop


@dataclass(frozen=True)
class Variation:
    """What differs between photographs of one person. 0 or False switches a kind off; 1 is as in the world."""

    pose: float = 1.0  # scale of the head's angles
    expression: float = 1.0  # scale of the face's movements
    light: bool = True  # lights and colours of their own, or one plain light
    camera: bool = True  # distance, and the detector's error, or a fixed distance and none
    background: bool = True  # a scene, or grey


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph and what is known of it."""

    pixels: NDArray[np.uint8]  # [H, W, 3] RGB
    landmarks: Points  # [5, 2] x and y in pixels of the crop, whole at the pixels' centres
    attributes: dict[str, str | float]


def photo(
    model: Model,
    who: Person,
    image: int,
    *,
    size: tuple[int, int] = (112, 112),
    variation: Variation = Variation(),
) -> Photo:
    """Photograph `image` of a person: it follows from the person's seed and number and `image` only.

    Raises:
        ValueError: no reference points for this size.
    """
    key = (who.seed, who.number, image)
    points = _expressed(model, who, variation, Draws("expression", *key))
    view, attributes = _seen(model, points, size, variation, key)
    height, width = size[0] * _FINE, size[1] * _FINE
    seen = view.seen(points)
    where, near = view.pixels(seen)
    corners = np.round(((where + 0.5) * _FINE - 0.5) * STEPS).astype(np.int32)
    face_at = np.full((height, width), NOTHING, np.int32)
    weight_at = np.zeros((height, width, 2), np.float32)
    near_at = np.zeros((height, width), np.float32)
    rasterise(corners, near, model.faces, False, 0, face_at, weight_at, near_at)
    light = Draws("light", *key)
    direction = np.array([light.normal(), 0.4 + light.normal(0, 0.5), 1.0], np.float32)
    if not variation.light:
        direction = np.array([0.2, 0.5, 1.0], np.float32)
    colours = np.array(
        [who.skin, (0.7, 0.7, 0.7), (0.7, 0.7, 0.7), (0.8, 0.8, 0.7), (0.02, 0.02, 0.02), (0.2, 0.05, 0.05)]
    )
    background = Draws("background", *key)
    grey = background.uniform(0.05, 0.8) if variation.background else 0.3
    pixels = shade(
        face_at, weight_at, model.faces, vertex_normals(seen, model.faces), model.part, colours, direction,
        np.float32(grey), _FINE,
    )  # fmt: skip
    return Photo(pixels, landmarks_of(model, points, view), attributes)


def jpeg(picture: Photo, quality: int = 95) -> bytes:
    """The photograph as a JPEG of a quality from 1 to 100, which follows from its pixels and the version of Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _expressed(model: Model, who: Person, variation: Variation, draws: Draws) -> Vectors:
    """[V, 3] the person's face with an expression."""
    weights = np.zeros(len(model.units), np.float32)
    for _ in range(draws.choice([0, 1, 2, 3])):
        weights[draws.choice(range(len(weights)))] = draws.uniform(0, 0.5) * variation.expression
    return moved(who.shape, model.expressions[who.ancestry], weights)


def _seen(
    model: Model, points: Vectors, size: tuple[int, int], variation: Variation, key: tuple[int, int, int]
) -> tuple[View, dict[str, str | float]]:
    """The view of a photograph, and its attributes."""
    draws = Draws("pose", *key)
    yaw, pitch, roll = (round(variation.pose * draws.normal(0, d), 2) for d in (22.0, 9.0, 5.0))
    camera = Draws("camera", *key)
    distance = camera.uniform(5, 16) if variation.camera else 10.0
    error = 0.5 * camera.normals(10).reshape(5, 2) * variation.camera
    view = view_of(model, points, pose=(yaw, pitch, roll), distance=distance, size=size, error=error)
    return view, {"yaw": yaw, "pitch": pitch, "roll": roll, "distance": round(distance, 2)}
