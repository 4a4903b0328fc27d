"""Faces and landmarks by MTCNN (Zhang et al., IEEE SPL 2016), whose weights the package `mtcnn-runtime` carries."""

from functools import cache, partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.versions import how_to_install
from pipeline.shards.alignment.similarity import Points
from pipeline.shards.format.manifest import ShardError


class Face(NamedTuple):
    """A detected face: box (left, top, right, bottom) in pixels, and its landmarks."""

    box: NDArray[np.float64]
    landmarks: Points

    @property
    def side(self) -> float:
        """The shorter side of the box, in pixels."""
        return float(min(self.box[2] - self.box[0], self.box[3] - self.box[1]))


def detect(image: NDArray[np.uint8]) -> list[Face]:
    """Faces of an RGB image [height, width, 3] of 20 pixels and more.

    Raises:
        ShardError: the detector is not installed.
    """
    detector, no_face = load_detector()
    try:
        boxes, landmarks = detector.detect(np.ascontiguousarray(image[:, :, ::-1]))
    except no_face:
        # The package stacks the windows of its first stage and passes them on, even if there are none.
        return []
    faces = []
    for box, points in zip(boxes, landmarks, strict=True):
        x_and_y = np.asarray(points, np.float64).reshape(2, 5)
        faces.append(Face(np.asarray(box[:4], np.float64), x_and_y.T))
    return faces


def nearest_centre(faces: list[Face], height: int, width: int) -> Face:
    """The face whose box lies nearest the centre of the image, as SphereFace takes it."""
    centre = np.array([width, height]) / 2
    return min(faces, key=lambda face: float(np.hypot(*((face.box[:2] + face.box[2:]) / 2 - centre))))


@cache
def load_detector() -> tuple[Any, tuple[type[Exception], ...]]:
    """The detector and what it raises if it finds nothing; loaded once in each process.

    Raises:
        ShardError: it is not installed.
    """
    try:
        runtime: Any = import_module("onnxruntime")
        package: Any = import_module("mtcnnruntime.detector")
    except ImportError as error:
        # The import error is part of the message: OpenCV may be installed and fail to import without libGL.
        raise ShardError(
            f"alignment needs mtcnn-runtime: {how_to_install('align')} ({error}); its OpenCV needs the system's "
            "libGL and GLib (Debian: apt-get install libgl1 libglib2.0-0)"
        ) from error
    # One thread a process: the workers already fill the machine, and the package has no such option.
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = partial(runtime.InferenceSession, sess_options=options)
    package.onnxruntime = SimpleNamespace(InferenceSession=session)
    errors = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    return package.MTCNN(), (ValueError, errors.InvalidArgument, errors.RuntimeException, errors.Fail)
