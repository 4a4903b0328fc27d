"""Results that keep their draws: two networks' rates are then subtracted draw by draw, on the same people."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, InstanceOf

from pipeline.arrays import read_npz
from pipeline.evaluation.scoring.draws import Draws
from pipeline.evaluation.scoring.rates import Record

_BETWEEN = "|"  # a statistic's name and that of an array


class Drawn(Record):
    """A result with the draws behind its rates.

    Attributes:
        drawn: digest of the people, and how they were drawn; equal ones mean equal draws. Empty: it is not known.
        draws: of each statistic by its name in reports, one statistic each; not in the JSON but in a file beside it.
    """

    drawn: str = ""
    draws: dict[str, InstanceOf[Draws]] = Field(default_factory=dict, exclude=True, repr=False)

    def above(self, base: Drawn) -> dict[str, Draws]:
        """How much each statistic is above another result's, under the same draws; none if they were not the same."""
        if not self.drawn or self.drawn != base.drawn:
            return {}
        return {name: mine.above(base.draws[name]) for name, mine in self.draws.items() if name in base.draws}


def by_name(names: Sequence[str], draws: Draws) -> dict[str, Draws]:
    """The first of the statistics by their names, one each."""
    return {name: draws.take([place]) for place, name in enumerate(names)}


def digest_of(words: Iterable[object], *arrays: NDArray[Any]) -> str:
    """Digest of what draws depend on: words, such as a seed, and who was drawn."""
    digest = hashlib.sha256("\n".join(map(str, words)).encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def draws_to_bytes(draws: dict[str, Draws]) -> bytes:
    """The draws as an ``.npz``."""
    arrays: dict[str, Any] = {}
    for name, one in draws.items():
        arrays |= {f"{name}{_BETWEEN}{field.name}": getattr(one, field.name) for field in fields(Draws)}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def read_draws(file: Path) -> dict[str, Draws]:
    """What `draws_to_bytes` made; nothing if there is no such file. Raises ValueError for another content."""
    if not file.is_file():
        return {}
    try:
        arrays = read_npz(file)
        names = dict.fromkeys(key.rpartition(_BETWEEN)[0] for key in arrays)
        return {name: Draws(*(arrays[f"{name}{_BETWEEN}{field.name}"] for field in fields(Draws))) for name in names}
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{file}: not the draws of a result: {str(error).splitlines()[0]}") from error
