"""Functions as machine code: numba's compiler, without any of its freedoms in arithmetic."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_numba: Any
try:
    _numba = import_module("numba")
except ImportError:  # `Model.load` refuses; what only imports these modules, such as `--help`, works
    _numba = None


def compiled(function: F) -> F:
    """`function`, compiled at its first call and kept on the disk.

    No `fastmath`: sums keep their order and no product is fused with a sum, so that +, −, ×, ÷ and √ give IEEE 754's
    result on every processor. A compiled function must not call sin, exp or pow, whose last digit libraries differ in,
    and calls compiled functions of its own file only: of others the kept code would not see a change.
    """
    if _numba is None:
        return function
    # Inlined, small functions cost no counting of references to the arrays that they are given.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": True}
    fast: F
    try:
        fast = _numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the source's folder nor the user's can be written: every process compiles
        fast = _numba.njit(**options)(function)
    return fast


def is_kept(function: Callable[..., Any]) -> bool:
    """Whether the machine code of a `compiled` function is on the disk, and no older than the function's file."""
    folder = function.stats.cache_path if hasattr(function, "stats") else None  # None: not compiled, or never kept
    if folder is None:
        return False
    source = Path(inspect.getfile(inspect.unwrap(function)))
    kept = Path(folder).glob(f"{source.stem}.{function.__name__}-*.nbi")
    return any(file.stat().st_mtime >= source.stat().st_mtime for file in kept)
