"""The similarity transform of five landmarks to the reference points of the networks, and the crop that it makes."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Points = NDArray[np.float64]  # [5, 2] x and y: left eye, right eye, nose, left and right corner of the mouth

# SphereFace's reference points in a crop of 112x96 (Liu et al., CVPR 2017, the authors' code).
SPHEREFACE = np.array(
    [(30.2946, 51.6963), (65.5318, 51.5014), (48.0252, 71.7366), (33.5493, 92.3655), (62.7299, 92.2041)]
)
# (height, width) of a crop and how far right of SphereFace's its points lie; ArcFace's 112x112 adds 8 columns a side.
SHIFTS = {(112, 96): 0.0, (112, 112): 8.0}


def reference_points(height: int, width: int) -> Points:
    """[5, 2] points of a crop.

    Raises:
        ValueError: no points were published for this size.
    """
    if (height, width) not in SHIFTS:
        raise ValueError(f"size: got {height}x{width}, wanted {' or '.join(f'{h}x{w}' for h, w in SHIFTS)}")
    return SPHEREFACE + np.array([SHIFTS[height, width], 0.0])


def fit_similarity(source: Points, target: Points) -> NDArray[np.float64]:
    """[2, 3] rotation, scale and shift (no reflection) that maps `source` to `target` with the least squared error.

    With points as complex numbers it is w = a·z + b, so a is a ratio of sums (Umeyama, PAMI 1991, in the plane).

    Raises:
        ValueError: all source points are one, or one is not finite.
    """
    if not np.isfinite(source).all():
        raise ValueError("landmarks: got points that are not finite, wanted a face")
    z, w = source @ (1, 1j), target @ (1, 1j)
    spread = np.sum(np.abs(z - z.mean()) ** 2)
    if not spread > 0:
        raise ValueError("landmarks: got five equal points, wanted a face")
    a = np.sum(np.conj(z - z.mean()) * (w - w.mean())) / spread
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def crop(photo: Image.Image, landmarks: Points, height: int, width: int) -> Image.Image:
    """The aligned face, height x width pixels; black outside the photograph.

    Landmarks are pixel numbers, whole at the pixels' centres. A face much larger than its crop is averaged down first,
    since interpolation alone would pick single pixels of it.

    Raises:
        ValueError: no reference points for this size, or landmarks that are no face.
    """
    target = reference_points(height, width) + 0.5  # Pillow counts from the pixels' corners
    matrix = fit_similarity(landmarks + 0.5, target)
    factor = max(1, int(1 / np.hypot(matrix[0, 0], matrix[1, 0])))
    back = _inverse(matrix) / factor  # from the crop to the reduced photograph
    small = photo.reduce(factor) if factor > 1 else photo
    return small.transform((width, height), Image.Transform.AFFINE, back.ravel().tolist(), Image.Resampling.BICUBIC)


def _inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The [2, 3] map back."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.hstack([linear, -linear @ matrix[:, 2:]])
