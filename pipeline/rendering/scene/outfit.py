"""What a person wears in one photograph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.rendering.exact.draws import Draws
from pipeline.rendering.people.model import Model, Vectors
from pipeline.rendering.people.person import Person, Worn
from pipeline.rendering.people.styles import Colour
from pipeline.rendering.scene.accessories import FRAMES, HATS, add_glasses, add_hand, add_hat, add_mask, covered_by
from pipeline.rendering.scene.camera import View
from pipeline.rendering.scene.scene import Scene, scene_of
from pipeline.rendering.variation import Variation

_NEEDED, _SUNNY = 0.85, 0.04  # how often glasses are worn by one who needs them, and sunglasses by anyone
# Of glasses: black twice, tortoise, gold, silver, red, blue.
_FRAME_COLOURS: tuple[Colour, ...] = (
    (0.01, 0.01, 0.01),
    (0.02, 0.02, 0.02),
    (0.09, 0.04, 0.02),
    (0.35, 0.24, 0.10),
    (0.35, 0.35, 0.36),
    (0.25, 0.02, 0.03),
    (0.02, 0.05, 0.2),
)


@dataclass(frozen=True)
class Outfit:
    """What is worn; an empty string is nothing."""

    hair: Worn
    hat: str
    glasses: str
    sun: bool  # whether the glasses are dark
    mask: bool
    hand: bool
    clothes: Colour
    cloth: Colour  # of hat or mask
    frame: Colour

    @property
    def attributes(self) -> dict[str, str | float]:
        """What a photograph's attributes say of it."""
        glasses = "sun" if self.sun else self.glasses
        kinds: dict[str, str | float] = {"style": self.hair.style.name, "hat": self.hat, "glasses": glasses}
        return kinds | {"mask": float(self.mask), "hand": float(self.hand)}


def drawn_outfit(who: Person, variation: Variation, *key: int) -> Outfit:
    """What a person wears in the photograph of a key (seed, number, image)."""
    draws = Draws("outfit", *key)
    lots = {name: draws.uniform() for name in ("hair", "glasses", "hats", "masks", "hands")}
    hat, other = draws.choice(HATS, (3, 3, 1.5, 1.5)), draws.choice(FRAMES[:2])
    needed = bool(who.glasses) and lots["glasses"] < _NEEDED * variation.glasses
    sun = lots["glasses"] > 1 - _SUNNY * variation.glasses
    colours = [(draws.uniform(0.02, 0.7), draws.uniform(0.02, 0.7), draws.uniform(0.02, 0.7)) for _ in range(2)]
    return Outfit(
        hair=who.worn[-1] if lots["hair"] < variation.styling else who.worn[0],
        hat=hat if lots["hats"] < variation.hats else "",
        glasses=other if sun else who.glasses if needed else "",
        sun=sun,
        mask=lots["masks"] < variation.masks,
        hand=lots["hands"] < variation.hands,
        clothes=colours[0],
        cloth=colours[1],
        frame=Draws("frame", *key[:2]).choice(_FRAME_COLOURS),
    )


def dressed(model: Model, points: Vectors, outfit: Outfit, view: View, *key: int) -> Scene:
    """The scene of a head [V, 3] with an outfit, in the photograph of a key (seed, number, image)."""
    hatted = covered_by(model, outfit.hat) if outfit.hat else np.zeros(len(points), np.bool_)
    scene = scene_of(model, points, outfit.hair, view, hatted | (outfit.hat == "scarf"))
    if outfit.hat:
        add_hat(scene, model, points, outfit.hat, Draws("hat", *key))
    if outfit.mask:
        add_mask(scene, model, Draws("mask", *key))
    if outfit.glasses:
        # Sunglasses are any; the glasses that one needs are always the same.
        draws = Draws("glasses", *key) if outfit.sun else Draws("glasses", *key[:2])
        add_glasses(scene, model, points, outfit.glasses, draws)
    if outfit.hand:
        add_hand(scene, model, points, Draws("hand", *key))
    return scene
