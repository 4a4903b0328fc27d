"""The map of the head on which skin is painted: around the head from left to right, and from its top down."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.rendering.exact.compiling import compiled
from pipeline.rendering.exact.raster import NOTHING, STEPS, rasterise

COLUMNS, ROWS = 512, 320
TOP, BOTTOM = 8.55, 5.9  # decimetres of the base mesh
AXIS = 0.5  # depth of the head's axis
MASKS = ("lips", "eyelids", "inside-mouth")  # of MakeHuman's textures


@dataclass(frozen=True)
class Chart:
    """Where the base mesh's skin is on the map, and what is where."""

    places: NDArray[np.float32]  # [V, 2] column and row of each vertex
    positions: NDArray[np.float32]  # [ROWS, COLUMNS, 3] of the base mesh
    masks: NDArray[np.float32]  # [ROWS, COLUMNS, len(MASKS)] from 0 to 1
    inside: NDArray[np.float32]  # [V] 1 for a vertex inside the mouth

    @property
    def angle(self) -> NDArray[np.float64]:
        """[V] of each vertex around the head: 0 in front, 1 at the left ear, -1 at the right, 2 and -2 behind."""
        return (self.places[:, 0].astype(np.float64) + 0.5) / COLUMNS * 4 - 2


def chart_of(rest: NDArray[np.float32], faces: NDArray[np.int32], texture: NDArray[np.float32], folder: Path) -> Chart:
    """The map for vertices [V, 3], the skin's faces [F, 3] and the vertices' places in MakeHuman's textures [V, 2]."""
    places = _places(rest)
    across = places[faces][:, :, 0]
    # The seam is behind the head: faces over it would smear over the whole map.
    drawn = np.ascontiguousarray(faces[np.ptp(across, axis=1) < COLUMNS / 2])
    face_at = np.full((ROWS, COLUMNS), NOTHING, np.int32)
    weight_at = np.zeros((ROWS, COLUMNS, 2), np.float32)
    outward = np.abs(rest[:, 0]) + np.abs(rest[:, 2] - AXIS)
    corners = np.round(places.astype(np.float64) * STEPS).astype(np.int32)
    rasterise(
        corners,
        outward,
        drawn,
        np.arange(len(drawn)),
        False,
        face_at,
        weight_at,
        np.full((ROWS, COLUMNS), -1, np.float32),
    )
    looked_up = np.stack([_looked_up(texture, folder / "textures" / f"mpfb_{name}.jpg") for name in MASKS], 1)
    values = np.concatenate([rest, looked_up], 1)
    found = filled(face_at, weight_at, drawn, values, _plain(values.shape[1]))
    return Chart(places, found[:, :, :3].copy(), found[:, :, 3:].copy(), looked_up[:, MASKS.index("inside-mouth")])


@compiled
def filled(
    face_at: NDArray[np.int32],
    weight_at: NDArray[np.float32],
    faces: NDArray[np.int32],
    values: NDArray[np.float32],
    otherwise: NDArray[np.float32],
) -> NDArray[np.float32]:
    """[H, W, K] values [V, K] of the vertices at each pixel; where no face is, `otherwise` [H, W, K]."""
    out = otherwise.copy()
    for row in range(face_at.shape[0]):
        for column in range(face_at.shape[1]):
            face = face_at[row, column]
            if face >= 0:
                a, b, c = faces[face]
                of_b, of_c = weight_at[row, column]
                for k in range(values.shape[1]):
                    start = values[a, k]
                    out[row, column, k] = start + of_b * (values[b, k] - start) + of_c * (values[c, k] - start)
    return out


def _places(rest: NDArray[np.float32]) -> NDArray[np.float32]:
    """[V, 2] column and row. The angle about the axis is measured along a square, which needs no arctangent."""
    x, z = rest[:, 0].astype(np.float64), rest[:, 2].astype(np.float64) - AXIS
    share = x / np.maximum(np.abs(x) + np.abs(z), 1e-9)
    turn = np.where(z >= 0, share, np.where(x >= 0, 2 - share, -2 - share))  # 0 in front, 1 at the left ear, 2 behind
    rows = (TOP - rest[:, 1].astype(np.float64)) / (TOP - BOTTOM) * ROWS
    return np.stack([(turn + 2) / 4 * COLUMNS - 0.5, rows - 0.5], 1).astype(np.float32)


def _plain(width: int) -> NDArray[np.float32]:
    """[ROWS, COLUMNS, width] what is where no skin is, such as between the lids: points of a tube, and no mask."""
    turn = (np.arange(COLUMNS) + 0.5) / COLUMNS * 4 - 2
    out = np.zeros((ROWS, COLUMNS, width), np.float32)
    out[:, :, 0] = np.where(np.abs(turn) <= 1, turn, np.sign(turn) * (2 - np.abs(turn)))
    out[:, :, 1] = (TOP - (np.arange(ROWS) + 0.5) / ROWS * (TOP - BOTTOM))[:, None]
    out[:, :, 2] = AXIS + 1 - np.abs(turn)
    return out


def _looked_up(texture: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    """[V] what a texture has for each vertex, from 0 to 1."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    rows = np.clip(((1 - texture[:, 1]) * pixels.shape[0]).astype(np.int64), 0, pixels.shape[0] - 1)
    columns = np.clip((texture[:, 0] * pixels.shape[1]).astype(np.int64), 0, pixels.shape[1] - 1)
    return pixels[rows, columns].astype(np.float32) / np.float32(255)
