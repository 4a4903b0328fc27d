"""Mixes of augmentations that other trainers use, by a word that stands in the recipe's list for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.reading.augment import Blur, Colour, Grey, LowResolution, Window
from pipeline.reading.augmentation import AUGMENTATIONS, Augmentation

MIXES: dict[str, tuple[Augmentation, ...]] = {
    # mk-minchul/AdaFace, dataset/augmenter.py, in its order and with the probabilities of its scripts (Kim, Jain & Liu,
    # CVPR 2022). Its jitter takes contrast about the image's mean and draws the order of its parts; a fifth filter of
    # OpenCV's is left out, AREA, and its Lanczos has eight taps for DALI's six.
    "adaface": (
        Window(name="window", probability=0.2),
        LowResolution(
            name="low_resolution",
            probability=0.2,
            filters=("nearest", "linear", "cubic", "lanczos"),
            antialias=False,
        ),
        Colour(name="colour", probability=0.2, brightness=(0.5, 1.5), contrast=(0.5, 1.5), saturation=(0.5, 1.5)),
    ),
    # insightface's arcface_torch, dataset.py, `dali_aug`. Its blur takes a Gaussian of 0.8 or 1.1 pixels, cut off at 1
    # or 2: σ is that of what is left.
    "arcface_torch": (
        LowResolution(name="low_resolution", probability=0.1, scale=(56 / 112, 89 / 112)),
        Blur(name="blur", probability=0.2, sigma=(0.69, 1.03)),
        Colour(name="colour", probability=0.2, hue=(0.0, 20.0), saturation=(1.0, 1.2)),
        Grey(name="grey", probability=0.1),
    ),
}


def with_mixes(augment: Any) -> Any:
    """A recipe's list of augmentations with what is in a mix in the place of its word; all else as it is.

    Raises ValueError for a word that is neither a mix nor an augmentation, with those that there are.
    """
    return tuple(_parts(augment)) if isinstance(augment, (list, tuple)) else augment


def _parts(augment: list[Any] | tuple[Any, ...]) -> Iterator[Any]:
    for place, one in enumerate(augment):
        if isinstance(one, str) and one not in {*AUGMENTATIONS, *MIXES}:
            raise ValueError(f"{place}.name: got {one!r}, wanted one of {', '.join((*AUGMENTATIONS, *MIXES))}")
        yield from MIXES[one] if isinstance(one, str) and one in MIXES else (one,)
