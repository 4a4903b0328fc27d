"""Materials of what is seen, and how they reflect light."""

import numpy as np
from numpy.typing import NDArray

# Materials of faces; the first six are `model.PARTS`. CAP is the layer under the locks, CLOTH is on the body.
SKIN, LEFT_EYE, RIGHT_EYE, TEETH, LASHES, MOUTH, HAIR, CAP, CLOTH, FRAME, LENS, HAND, WOVEN = range(13)
MATERIALS = 13

# Of each material: how far light goes around the edge of its own shadow, in red, green and blue (skin lets red through
# furthest), how bright a lamp's reflection is, and how often that is squared: its sharpness.
_SURFACES = (
    (0.42, 0.20, 0.12, 0.22, 4),
    (0.3, 0.3, 0.3, 0.9, 8),
    (0.3, 0.3, 0.3, 0.9, 8),
    (0.1, 0.1, 0.1, 0.3, 5),
    (0.1, 0.1, 0.1, 0.0, 3),
    (0.3, 0.1, 0.1, 0.2, 5),
    (0.0, 0.0, 0.0, 0.0, 3),
    (0.1, 0.1, 0.1, 0.03, 3),
    (0.1, 0.1, 0.1, 0.03, 3),
    (0.1, 0.1, 0.1, 0.12, 5),
    (0.0, 0.0, 0.0, 1.2, 7),
    (0.42, 0.20, 0.12, 0.10, 4),
    (0.1, 0.1, 0.1, 0.03, 3),
)


def surfaces() -> NDArray[np.float32]:
    """[MATERIALS, 5] how each reflects light."""
    return np.array(_SURFACES, np.float32)
