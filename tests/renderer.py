"""Whether the renderer works here."""

import importlib.util

import pytest

needs_renderer = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("anny", "numba")), reason="needs the extra 'rendered'"
)
