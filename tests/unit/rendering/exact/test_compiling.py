import importlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.rendering.exact.compiling import compiled, is_kept
from tests.renderer import needs_renderer

pytestmark = needs_renderer


@compiled
def fusible(a: float, b: float, c: float) -> float:
    return a * b + c


@compiled
def total(values: np.ndarray) -> float:
    found = 0.0
    for value in values:
        found += value
    return found


def test_products_are_rounded_before_they_are_added() -> None:
    a = 1 + 2.0**-30
    assert fusible(a, a, -1.0) == (a * a) - 1.0
    # One rounding instead of two would keep the square's last bits.
    assert fusible(a, a, -(1 + 2.0**-29)) == 0.0


def test_sums_keep_their_order() -> None:
    values = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.random.default_rng(1).integers(-8, 8, 1000)
    wanted = 0.0
    for value in values.tolist():
        wanted += value
    assert total(values) == wanted
    assert math.fsum(values) != wanted  # another order shows


def test_where_nothing_can_be_kept_it_compiles_each_time() -> None:
    namespace: dict[str, Any] = {}
    exec("def double(x):\n    return 2 * x\n", namespace)
    double: Callable[[int], int] = compiled(namespace["double"])
    assert double(21) == 42
    assert not is_kept(double)


def test_what_is_kept_is_known_before_the_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kept_here.py"
    file.write_text(
        "from pipeline.rendering.exact.compiling import compiled\n@compiled\ndef twice(x):\n    return 2 * x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    twice = importlib.import_module("kept_here").twice
    assert not is_kept(twice)
    assert twice(21) == 42
    assert is_kept(twice)
    later = file.stat().st_mtime + 10
    os.utime(file, (later, later))
    assert not is_kept(twice)
