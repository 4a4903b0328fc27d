"""Arrays by name in an ``.npz``, read whole; what is none is one kind of error."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray


def read_npz(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of `file`; no pickle is run.

    Raises ValueError for what is no ``.npz`` or a part of one, OSError if it cannot be read.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            return dict(found)
    # It is empty, a single array, cut, or damaged within.
    except (EOFError, TypeError, BadZipFile, zlib.error) as error:
        raise ValueError(f"got {str(error) or type(error).__name__}, wanted an .npz") from error
