"""A photograph of a person who does not exist, aligned as the project's crops are."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.rendering.exact.blending import mean_of, turned
from pipeline.rendering.exact.draws import Draws
from pipeline.rendering.people.model import Model, Vectors
from pipeline.rendering.people.person import Person
from pipeline.rendering.pixels import sensor
from pipeline.rendering.pixels.drawing import Drawn, drawn_scene, enlarged, shows
from pipeline.rendering.pixels.shading import shade
from pipeline.rendering.pixels.shadows import dark_corners, shadow_map
from pipeline.rendering.scene.background import drawn_background
from pipeline.rendering.scene.camera import View, landmarks_of, rotation, view_of
from pipeline.rendering.scene.expression import expressed
from pipeline.rendering.scene.lighting import PLAIN, Lighting, drawn_lighting
from pipeline.rendering.scene.materials import (
    CAP,
    CLOTH,
    FRAME,
    HAIR,
    HAND,
    LASHES,
    LEFT_EYE,
    LENS,
    MATERIALS,
    MOUTH,
    RIGHT_EYE,
    SKIN,
    TEETH,
    WOVEN,
    surfaces,
)
from pipeline.rendering.scene.outfit import Outfit, drawn_outfit, dressed
from pipeline.rendering.variation import Variation
from pipeline.shards.alignment.similarity import Points

_FINE = 2  # pixels a side that are drawn for one of the crop
Key = tuple[int, int, int]  # seed, person, photograph


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph and what is known of it."""

    pixels: NDArray[np.uint8]  # [H, W, 3] RGB
    landmarks: Points  # [5, 2] x and y in pixels of the crop, whole at the pixels' centres
    attributes: dict[str, str | float]  # angles in degrees, distance in decimetres, names of what was drawn


def photo(
    model: Model,
    who: Person,
    image: int,
    *,
    size: tuple[int, int] = (112, 112),
    variation: Variation = Variation(),
) -> Photo:
    """Photograph `image` of a person: its bytes follow from the person's seed and number, `image` and the options only.

    Numbers come from hashes, not from a generator's state. Arithmetic is +, −, ×, ÷ and √ of IEEE 754 in a fixed order
    (`compiling`); corners are whole 256ths of a pixel before a triangle covers any, and what NumPy's matrix product has
    a part in is rounded (`camera`). So no processor, library or number of workers shows. A compression before ours
    (`Variation.jpeg`) is the one of the installed Pillow.

    Args:
        model: of `Model.load`.
        who: of `person`.
        image: the photograph's number, from 0.
        size: (height, width): 112x112 or 112x96.
        variation: what differs between photographs.

    Raises:
        ValueError: no reference points for this size.
    """
    key = (who.seed, who.number, image)
    points, expression = expressed(model, who, variation.expression, Draws("expression", *key))
    view, pose = _view(model, points, size, variation, key)
    outfit = drawn_outfit(who, variation, *key)
    lighting = drawn_lighting(Draws("light", *key)) if variation.light else PLAIN
    drawn = drawn_scene(dressed(model, points, outfit, view, *key), *size, _FINE)
    behind, background = np.full((*size, 3), 0.25, np.float32), "grey"
    if variation.background:
        behind, background = drawn_background(Draws("background", *key), *size)
    canvas = enlarged(behind, _FINE)
    _shade(canvas, model, who, outfit, drawn, view, lighting, _eyes(model, who, drawn, view, variation, key))
    pixels, taken = _taken(canvas, drawn, variation, key)
    scene: dict[str, str | float] = {"expression": expression, "light": lighting.kind, "background": background}
    return Photo(pixels, landmarks_of(model, points, view), pose | scene | outfit.attributes | taken)


def jpeg(picture: Photo, quality: int = 95) -> bytes:
    """The photograph as a JPEG of a quality from 1 to 100, which follows from its pixels and the version of Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _view(
    model: Model, points: Vectors, size: tuple[int, int], variation: Variation, key: Key
) -> tuple[View, dict[str, str | float]]:
    """How the head is seen, and the attributes that say so."""
    draws, camera = Draws("pose", *key), Draws("camera", *key)
    sideways = draws.choice((8.0, 20.0, 34.0), (3, 3, 1))
    yaw, pitch, roll = (round(variation.pose * draws.normal(0, d), 2) for d in (sideways, 8.0, 6.0))
    distance = camera.uniform(4.5, 18) if variation.camera else 10.0
    error = variation.alignment * Draws("alignment", *key).normals(10).reshape(5, 2)
    view = view_of(model, points, pose=(yaw, pitch, roll), distance=distance, size=size, error=error)
    return view, {"yaw": yaw, "pitch": pitch, "roll": roll, "distance": round(distance, 2)}


def _eyes(model: Model, who: Person, drawn: Drawn, view: View, variation: Variation, key: Key) -> NDArray[np.float32]:
    """[3, 5] as `shade` takes them."""
    draws = Draws("gaze", *key)
    sideways, upwards = (variation.expression * draws.normal(0, d) for d in (9.0, 5.0))
    ahead = rotation(sideways, upwards, 0.0)[:, 2]
    middles = [mean_of(drawn.points, vertices) for vertices in model.eyes]
    gaze = turned(ahead[None], view.turn, np.zeros(3, np.float32))[0]
    beside = ((who.iris_size, draws.uniform(0.975, 0.99)), who.iris[:2], (who.iris[2], who.red))
    return np.array([[*place, *pair] for place, pair in zip((*middles, gaze), beside, strict=True)], np.float32)


def _shade(
    canvas: NDArray[np.float32],
    model: Model,
    who: Person,
    outfit: Outfit,
    drawn: Drawn,
    view: View,
    lighting: Lighting,
    eyes: NDArray[np.float32],
) -> None:
    """Paint what is drawn over the canvas."""
    palette = np.zeros((MATERIALS, 3), np.float32)
    palette[[LEFT_EYE, RIGHT_EYE]] = 0.58, 0.55, 0.53
    palette[TEETH], palette[MOUTH] = (0.74, 0.68, 0.58), (0.30, 0.09, 0.08)
    palette[LASHES] = palette[LENS] = 0.012, 0.010, 0.011
    palette[HAIR] = palette[CAP] = who.hair
    palette[CLOTH], palette[WOVEN], palette[FRAME], palette[HAND] = outfit.clothes, outfit.cloth, outfit.frame, who.tone
    opacity = np.ones(MATERIALS, np.float32)
    opacity[LASHES] = 0.4 if who.attributes["sex"] == "male" else 0.7
    opacity[LENS] = 0.93 if outfit.sun else 0.12
    axes = lighting.axes
    # Locks cast none: a few single ones would draw stripes on the forehead.
    casts = (drawn.material != LASHES) & (drawn.material != LENS) & (drawn.material != HAIR)
    shadow, bounds = shadow_map(drawn.points, drawn.faces, np.flatnonzero(casts), axes)
    step = float(np.sqrt(view.matrix[0, 0] * view.matrix[0, 0] + view.matrix[1, 0] * view.matrix[1, 0]))
    corners = dark_corners(drawn.near_at, view.distance, step, _FINE)
    attributes = drawn.attributes
    attributes[: len(model.rest), 8] = model.chart.inside
    for face_at, weight_at in drawn.layers:
        shade(
            canvas,
            face_at,
            weight_at,
            drawn.faces,
            drawn.material,
            attributes,
            who.skin,
            palette,
            surfaces(),
            opacity,
            corners,
            shadow,
            bounds,
            axes,
            lighting.lights,
            lighting.sky,
            view.turn[:, 1].copy(),
            eyes,
            who.oil,
            view.distance,
            _FINE,
        )


def _taken(
    canvas: NDArray[np.float32], drawn: Drawn, variation: Variation, key: Key
) -> tuple[NDArray[np.uint8], dict[str, str | float]]:
    """The crop's pixels, and how the picture was taken."""
    draws, focus, compression = (Draws(purpose, *key) for purpose in ("sensor", "resolution", "jpeg"))
    settings = sensor.drawn_sensor(draws) if variation.camera else sensor.PLAIN
    picture = sensor.averaged(canvas, _FINE)
    bright = sensor.brightness(picture, shows(drawn.layers[0][0], drawn.material, SKIN, _FINE))
    picture, focused = sensor.focused(picture, variation.resolution, focus)
    pixels = sensor.developed(
        picture,
        settings.gain(bright),
        settings.contrast,
        settings.saturation,
        np.array(settings.balance, np.float32),
        settings.grain,
        np.uint64(draws.word()),
    )
    quality = int(compression.uniform(35, 92)) if compression.chance(variation.jpeg) else 100
    return pixels if quality == 100 else sensor.recompressed(pixels, quality), focused | {"jpeg": quality}
