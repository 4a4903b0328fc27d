"""A photograph of a person who does not exist, aligned as the project's crops are."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.rendering import sensor
from pipeline.rendering.accessories import FRAMES, HATS, add_glasses, add_hand, add_hat, add_mask, covered_by
from pipeline.rendering.background import drawn_background
from pipeline.rendering.blending import mean_of, moved, turned
from pipeline.rendering.camera import View, landmarks_of, rotation, view_of
from pipeline.rendering.draws import Draws
from pipeline.rendering.lighting import PLAIN, Lighting, drawn_lighting, shadow_map
from pipeline.rendering.model import Model, Vectors
from pipeline.rendering.person import Person, Worn
from pipeline.rendering.scene import Drawn, Scene, drawn_scene, scene_of
from pipeline.rendering.shading import (
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
    TEETH,
    WOVEN,
    dark_corners,
    shade,
    surfaces,
)
from pipeline.shards.alignment.similarity import Points

_FINE = 2  # pixels a side that are drawn for one of the crop


@dataclass(frozen=True)
class Variation:
    """What differs between photographs of one person. 1 is as in the world; 0 or False switches a kind off."""

    pose: float = 1.0  # scale of the head's angles
    expression: float = 1.0  # scale of the face's movements and of the gaze
    light: bool = True  # lights and colours of their own, or one plain light
    camera: bool = True  # distance, exposure, tones and grain, or a plain camera
    alignment: float = 0.5  # standard deviation of the landmarks that the crop is aligned by, in pixels: a detector's
    background: bool = True  # a scene, or grey
    styling: float = 0.25  # how often the hair is worn another way
    glasses: float = 1.0  # scale of how often glasses are worn, by those who need them or against the sun
    hats: float = 0.06  # how often a hat, a scarf or a band is worn
    masks: float = 0.015  # how often a mask is worn
    hands: float = 0.03  # how often a hand is before the face
    resolution: float = 1.0  # how often, and how far, a photograph is unsharp or small
    jpeg: float = 0.5  # how often a photograph has been compressed before


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
    points, expression = _expressed(model, who, variation, Draws("expression", *key))
    view, attributes = _seen(model, points, size, variation, key)
    styling = Draws("styling", *key)
    worn = who.worn[-1] if styling.chance(variation.styling) else who.worn[0]
    lighting = drawn_lighting(Draws("light", *key)) if variation.light else PLAIN
    whole, occlusion = _dressed(model, who, points, worn, view, variation, key)
    scene = drawn_scene(whole, *size, _FINE)
    behind, background = np.full((*size, 3), 0.25, np.float32), "grey"
    if variation.background:
        behind, background = drawn_background(Draws("background", *key), *size)
    canvas = behind.repeat(_FINE, 0).repeat(_FINE, 1)
    _lit(canvas, model, who, view, scene, lighting, variation, key, occlusion["glasses"] == "sun")
    pixels, taken = _taken(canvas, scene, variation, key)
    attributes |= {
        "expression": expression,
        "light": lighting.kind,
        "background": background,
        "style": worn.style.name,
        **taken,
    }
    return Photo(pixels, landmarks_of(model, points, view), attributes)


def jpeg(picture: Photo, quality: int = 95) -> bytes:
    """The photograph as a JPEG of a quality from 1 to 100, which follows from its pixels and the version of Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


# Expressions: units of MakeHuman that go together, and how far.
EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {"mouth-corner-puller": 0.7, "eye-left-slit": 0.25, "eye-right-slit": 0.25},
    "laugh": {
        "mouth-corner-puller": 0.9,
        "mouth-open": 0.4,
        "mouth-part-later": 0.4,
        "eye-left-slit": 0.5,
        "eye-right-slit": 0.5,
    },
    "talk": {"mouth-open": 0.45},
    "wide": {"eye-left-opened-up": 0.6, "eye-right-opened-up": 0.6, "eyebrows-left-up": 0.6, "eyebrows-right-up": 0.6},
    "frown": {"eyebrows-left-down": 0.7, "eyebrows-right-down": 0.7, "mouth-depression": 0.4},
    "sad": {"eyebrows-left-inner-up": 0.6, "eyebrows-right-inner-up": 0.6, "mouth-depression": 0.5},
    "kiss": {"mouth-pursing": 0.5, "mouth-protusion": 0.4},
    "tight": {"mouth-compression": 0.5, "mouth-retraction": 0.3},
    "sneer": {"nose-left-elevation": 0.5, "nose-right-elevation": 0.5, "mouth-upward-retraction": 0.4},
}
_SHARES = (3.0, 3.2, 2.4, 1.2, 0.4, 0.6, 0.4, 0.2, 0.4, 0.2)


def _expressed(model: Model, who: Person, variation: Variation, draws: Draws) -> tuple[Vectors, str]:
    """[V, 3] the person's face with an expression, and its name."""
    name = draws.choice(tuple(EXPRESSIONS), _SHARES)
    strength = draws.uniform(0.35, 1.0)
    weights = np.zeros(len(model.units), np.float32)
    for unit, weight in EXPRESSIONS[name].items():
        weights[model.units.index(unit)] = weight * strength
    for unit in range(len(weights)):
        weights[unit] += draws.uniform(0, 0.12) * draws.uniform()
    if draws.chance(0.06):  # a blink
        for side in ("left", "right"):
            weights[model.units.index(f"eye-{side}-closure")] = 0.75
    weights *= np.float32(variation.expression)
    return moved(who.shape, model.expressions[who.ancestry], weights), name if variation.expression else "neutral"


def _seen(
    model: Model, points: Vectors, size: tuple[int, int], variation: Variation, key: tuple[int, int, int]
) -> tuple[View, dict[str, str | float]]:
    """The view of a photograph, and its attributes."""
    draws = Draws("pose", *key)
    wide = draws.choice((8.0, 20.0, 34.0), (3, 3, 1))
    yaw, pitch, roll = (round(variation.pose * draws.normal(0, d), 2) for d in (wide, 8.0, 6.0))
    camera = Draws("camera", *key)
    distance = camera.uniform(4.5, 18) if variation.camera else 10.0
    error = variation.alignment * Draws("alignment", *key).normals(10).reshape(5, 2)
    view = view_of(model, points, pose=(yaw, pitch, roll), distance=distance, size=size, error=error)
    return view, {"yaw": yaw, "pitch": pitch, "roll": roll, "distance": round(distance, 2)}


# Of glasses: black, tortoise, gold, silver, red, blue.
_FRAME_COLOURS = (
    (0.01, 0.01, 0.01), (0.02, 0.02, 0.02), (0.09, 0.04, 0.02), (0.35, 0.24, 0.10), (0.35, 0.35, 0.36), (0.25, 0.02, 0.03),
    (0.02, 0.05, 0.2),
)  # fmt: skip


def _dressed(
    model: Model, who: Person, points: Vectors, worn: Worn, view: View, variation: Variation, key: tuple[int, int, int]
) -> tuple[Scene, dict[str, str | float]]:
    """The head with what is worn on it, and what that is."""
    draws = Draws("accessories", *key)
    has_glasses, has_hat, has_mask, has_hand = (draws.uniform() for _ in range(4))
    kind = draws.choice(HATS, (3, 3, 1.5, 1.5))
    other = draws.choice(FRAMES[:2])
    hat = kind if has_hat < variation.hats else ""
    glasses = who.glasses if has_glasses < (0.85 if who.glasses else 0.0) * variation.glasses else ""
    sun = has_glasses > 1 - 0.04 * variation.glasses
    hatted = covered_by(model, hat) if hat else np.zeros(len(points), np.bool_)
    scene = scene_of(model, who, points, worn, view, hatted if hat != "scarf" else np.ones(len(points), np.bool_))
    if hat:
        add_hat(scene, model, points, hat, Draws("hat", *key))
    if has_mask < variation.masks:
        add_mask(scene, model, Draws("mask", *key))
    if glasses or sun:
        one = Draws("glasses", *key) if sun else Draws("glasses", *key[:2])
        add_glasses(scene, model, points, other if sun else glasses, one)
    if has_hand < variation.hands:
        add_hand(scene, model, points, Draws("hand", *key))
    found = {"hat": hat, "glasses": "sun" if sun else glasses, "mask": float(has_mask < variation.masks)}
    return scene, {**found, "hand": float(has_hand < variation.hands)}


def _lit(
    canvas: NDArray[np.float32], model: Model, who: Person, view: View, scene: Drawn, lighting: Lighting,
    variation: Variation, key: tuple[int, int, int], sun: bool,
) -> None:  # fmt: skip
    """Paint the scene over the canvas."""
    draws = Draws("clothes", *key)
    gaze = Draws("gaze", *key)
    palette = np.zeros((MATERIALS, 3), np.float32)
    palette[LEFT_EYE] = palette[RIGHT_EYE] = 0.58, 0.55, 0.53
    palette[TEETH] = 0.60, 0.54, 0.44
    palette[LASHES] = 0.012, 0.010, 0.009
    palette[MOUTH] = 0.30, 0.09, 0.08
    palette[HAIR] = palette[CAP] = who.hair
    palette[CLOTH] = [draws.uniform(0.02, 0.6) for _ in range(3)]
    palette[FRAME] = palette[LENS] = 0.03, 0.03, 0.03
    palette[HAND] = who.tone
    palette[WOVEN] = [draws.uniform(0.02, 0.75) for _ in range(3)]
    palette[FRAME] = Draws("frame", *key[:2]).choice(_FRAME_COLOURS)
    if sun:
        palette[LENS] = 0.01, 0.01, 0.012
    opacity = np.ones(MATERIALS, np.float32)
    opacity[LASHES], opacity[LENS] = 0.4 if who.attributes["sex"] == "male" else 0.7, 0.93 if sun else 0.12
    axes = lighting.axes
    solid = np.flatnonzero((scene.material != LASHES) & (scene.material != LENS))
    shadow = shadow_map(scene.points, scene.faces, solid, axes)
    step = float(np.sqrt(view.matrix[0, 0] * view.matrix[0, 0] + view.matrix[1, 0] * view.matrix[1, 0]))
    corners = dark_corners(scene.near_at, view.distance, step, _FINE)
    eyes = np.zeros((3, 5), np.float32)
    for eye, vertices in enumerate(model.eyes):
        eyes[eye, :3] = mean_of(scene.points, vertices)
    sideways, upwards = (variation.expression * gaze.normal(0, d) for d in (9.0, 5.0))
    ahead = rotation(sideways, upwards, 0.0)[:, 2]
    eyes[2, :3] = turned(ahead[None], view.turn, np.zeros(3, np.float32))[0]
    eyes[0, 3:] = who.iris_size, gaze.uniform(0.975, 0.99)
    eyes[1, 3:], eyes[2, 3], eyes[2, 4] = who.iris[:2], who.iris[2], who.red
    attributes = np.zeros((len(scene.points), 9), np.float32)
    attributes[:, :3], attributes[:, 3:6], attributes[:, 6:8] = scene.points, scene.normals, scene.places
    attributes[: len(model.rest), 8] = model.chart.inside
    for face_at, weight_at in scene.layers:
        shade(
            canvas, face_at, weight_at, scene.faces, scene.material, attributes, who.skin, palette, surfaces(), opacity,
            corners, shadow, axes, lighting.lights, lighting.sky, view.turn[:, 1].copy(), eyes, who.oil, view.distance, _FINE,
        )  # fmt: skip


def _taken(
    canvas: NDArray[np.float32], scene: Drawn, variation: Variation, key: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], dict[str, str | float]]:
    """The crop's pixels, and how the picture was taken."""
    camera = Draws("sensor", *key)
    focus = Draws("resolution", *key)
    settings = sensor.drawn_sensor(camera) if variation.camera else sensor.PLAIN
    picture = sensor.averaged(canvas, _FINE)
    face = scene.layers[0][0][::_FINE, ::_FINE]
    face = (face >= 0) & (scene.material[np.maximum(face, 0)] == 0)
    bright = sensor.brightness(picture, face)
    gain = settings.exposure / (0.75 * bright + 0.25 * 0.22)
    blur = variation.resolution * focus.uniform(0, 1)
    blur = 0.25 + 0.9 * blur * blur
    picture = sensor.smeared(picture, blur, 0.0, 2)
    picture = sensor.smeared(picture, 0.0, blur, 2)
    if focus.chance(0.06 * variation.resolution):
        picture = sensor.smeared(picture, focus.normal(0, 1.5), focus.normal(0, 1.5), 3)
    smaller = 1.0
    if focus.chance(0.22 * variation.resolution):
        smaller = focus.uniform(1.2, 3.5)
        height, width = picture.shape[:2]
        picture = sensor.resized(sensor.resized(picture, int(height / smaller), int(width / smaller)), height, width)
    balance = np.array(settings.balance, np.float32)
    pixels = sensor.developed(
        picture, gain, settings.contrast, settings.saturation, balance, settings.grain, np.uint64(camera.word())
    )
    compression = Draws("jpeg", *key)
    quality = 100
    if compression.chance(variation.jpeg):
        quality = int(compression.uniform(35, 92))
        pixels = sensor.recompressed(pixels, quality)
    return pixels, {"smaller": round(smaller, 2), "blur": round(blur, 2), "jpeg": quality}
