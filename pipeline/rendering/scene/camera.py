"""From the head to the crop: pose, perspective, and the five points on the project's reference points."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.blending import mean_of, turned
from pipeline.rendering.exact.compiling import compiled
from pipeline.rendering.people.model import Model, Vectors
from pipeline.shards.alignment.similarity import Points, fit_similarity, reference_points

_EXACT = 2.0**20  # numbers that NumPy's matrix product had a part in are rounded to multiples of one over this


@dataclass(frozen=True)
class View:
    """How a head is seen: the turn of its points, and where in the crop they are."""

    turn: NDArray[np.float32]  # [3, 3]
    centre: NDArray[np.float32]  # [3] of the model, that becomes the origin
    distance: float  # of the camera from there, in decimetres
    matrix: NDArray[np.float64]  # [2, 3] from the plane of the camera to pixels of the crop

    def seen(self, points: Vectors) -> Vectors:
        """[V, 3] points of the model as the camera has them: x right, y up, z towards it."""
        return turned(points, self.turn, self.centre)

    def pixels(self, seen: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """[V, 2] where seen points are in the crop, in pixels, and [V] one over their distance, times `distance`."""
        return projected(seen, self.distance, self.matrix)


def view_of(
    model: Model,
    points: Vectors,
    *,
    pose: tuple[float, float, float],
    distance: float,
    size: tuple[int, int],
    error: NDArray[np.float64],
) -> View:
    """The view of a head.

    Args:
        model: whose landmarks are aligned.
        points: [V, 3] of the head, with its expression.
        pose: yaw (to the image's right), pitch (up) and roll (to the right), in degrees.
        distance: of the camera from the middle of the eyes, in decimetres.
        size: (height, width) of the crop.
        error: [5, 2] of the landmarks before the alignment, in pixels of the crop: a detector's.
    """
    eyes = [mean_of(points, group) for group in model.landmarks[:2]]
    centre = ((eyes[0] + eyes[1]) / 2).astype(np.float32)
    turn = rotation(*pose)
    marks = np.stack([mean_of(points, group) for group in model.landmarks]).astype(np.float32)
    plane, _ = projected(turned(marks, turn, centre), distance, np.eye(2, 3))
    target = reference_points(*size)
    matrix = _rounded(fit_similarity(plane, target - error))
    return View(turn, centre, distance, matrix)


def landmarks_of(model: Model, points: Vectors, view: View) -> Points:
    """[5, 2] where the landmarks are in the crop."""
    marks = np.stack([mean_of(points, group) for group in model.landmarks]).astype(np.float32)
    return view.pixels(view.seen(marks))[0]


def rotation(yaw: float, pitch: float, roll: float) -> NDArray[np.float32]:
    """[3, 3] the turn by yaw, then pitch, then roll, in degrees."""
    (sy, cy), (sp, cp), (sr, cr) = (sine_and_cosine(degrees) for degrees in (yaw, -pitch, -roll))
    about_y = ((cy, 0.0, sy), (0.0, 1.0, 0.0), (-sy, 0.0, cy))
    about_x = ((1.0, 0.0, 0.0), (0.0, cp, -sp), (0.0, sp, cp))
    about_z = ((cr, -sr, 0.0), (sr, cr, 0.0), (0.0, 0.0, 1.0))
    return np.array(_product(about_z, _product(about_x, about_y)), np.float32)


def sine_and_cosine(degrees: float) -> tuple[float, float]:
    """Of an angle from -180 to 180 by the series of Taylor about 0 for a quarter of it: the same on every machine."""
    x = degrees / 4 * 0.017453292519943295
    s = c = 0.0
    term = 1.0
    for n in range(16):
        if n % 2:
            s += term if n % 4 == 1 else -term
        else:
            c += term if n % 4 == 0 else -term
        term *= x / (n + 1)
    for _ in range(2):
        s, c = 2 * s * c, c * c - s * s
    return s, c


Rows = tuple[tuple[float, float, float], ...]


def _product(a: Rows, b: Rows) -> Rows:
    """The product of two 3x3 matrices, each sum in order."""
    return tuple(
        (
            row[0] * b[0][0] + row[1] * b[1][0] + row[2] * b[2][0],
            row[0] * b[0][1] + row[1] * b[1][1] + row[2] * b[2][1],
            row[0] * b[0][2] + row[1] * b[1][2] + row[2] * b[2][2],
        )
        for row in a
    )


@compiled
def projected(
    seen: Vectors, distance: float, matrix: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """[V, 2] seen points in perspective, x to the right and y down in the plane through the origin, then by a matrix
    [2, 3]; and [V] one over their distance, times `distance`."""
    count = len(seen)
    where, near = np.empty((count, 2)), np.empty(count, np.float32)
    for vertex in range(count):
        larger = distance / (distance - np.float64(seen[vertex, 2]))
        x, y = seen[vertex, 0] * larger, -seen[vertex, 1] * larger
        for k in range(2):
            where[vertex, k] = matrix[k, 0] * x + matrix[k, 1] * y + matrix[k, 2]
        near[vertex] = larger
    return where, near


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.round(values * _EXACT) / _EXACT
