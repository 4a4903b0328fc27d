"""Expressions of a face: units of MakeHuman that go together."""

import numpy as np

from pipeline.rendering.exact.blending import moved
from pipeline.rendering.exact.draws import Draws
from pipeline.rendering.people.model import Model, Vectors
from pipeline.rendering.people.person import Person

EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {"mouth-corner-puller": 0.7, "eye-left-slit": 0.25, "eye-right-slit": 0.25},
    "grin": {"mouth-corner-puller": 0.75, "mouth-part-later": 0.65, "eye-left-slit": 0.3, "eye-right-slit": 0.3},
    "laugh": {
        "mouth-corner-puller": 1.0,
        "mouth-part-later": 0.8,
        "mouth-upward-retraction": 0.3,
        "mouth-open": 0.12,
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
_SHARES = (3.0, 2.2, 2.0, 1.6, 1.2, 0.4, 0.6, 0.4, 0.2, 0.4, 0.2)
_BLINKS = 0.06


def expressed(model: Model, who: Person, scale: float, draws: Draws) -> tuple[Vectors, str]:
    """[V, 3] a person's face with an expression, `scale` times as strong as usual, and the expression's name."""
    name = draws.choice(tuple(EXPRESSIONS), _SHARES)
    strength = draws.uniform(0.35, 1.0)
    weights = dict.fromkeys(model.units, 0.0)
    for unit, weight in EXPRESSIONS[name].items():
        weights[unit] = weight * strength
    # No face is still: every muscle moves a little.
    lots = draws.uniforms(2 * len(weights))
    for unit, little in zip(weights, (0.12 * lots[::2] * lots[1::2]).tolist(), strict=True):
        weights[unit] += little
    if draws.chance(_BLINKS):
        weights["eye-left-closure"] = weights["eye-right-closure"] = 0.75
    amounts = np.array([scale * weight for weight in weights.values()], np.float32)
    return moved(who.shape, model.expressions[who.ancestry], amounts), name if scale else "neutral"
