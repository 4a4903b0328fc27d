"""What differs between photographs of one person, as switches."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variation:
    """What differs between photographs of one person. 1 is as in the world; 0 or False switches a kind off.

    Each kind draws its own numbers: switching one off leaves the others as they are.
    """

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
