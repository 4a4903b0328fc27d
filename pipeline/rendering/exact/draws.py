"""Random numbers by purpose: what one purpose draws leaves every other purpose's numbers as they are."""

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.hashing import hash64, hash_int, uniform

T = TypeVar("T")


class Draws:
    """Numbers that follow from integers and a purpose only, one after another.

    Only sums, products and comparisons of whole multiples of 2^-53 are used, so that every machine draws the same.
    """

    def __init__(self, purpose: str, *key: int) -> None:
        # A hash goes on from what its first parts gave: `hash_int(a, b)` is `hash_int(hash_int(a) + b)`.
        self._start = hash_int(hash_int(*key), zlib.crc32(purpose.encode()))
        self._next = 0

    def word(self) -> int:
        """64 random bits."""
        self._next += 1
        return hash_int(self._start + self._next - 1)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number from `low` up to `high`."""
        return low + (high - low) * ((self.word() >> 11) * 2.0**-53)

    def normal(self, mean: float = 0.0, deviation: float = 1.0) -> float:
        """A nearly normal number: four uniform ones added, so never beyond 3.5 deviations."""
        word = self.word()
        total = sum((word >> shift) & 0xFFFF for shift in (0, 16, 32, 48))
        return mean + deviation * (total / 65536 - 2 + 2.0**-15) * 1.7320508075688772

    def chance(self, probability: float) -> bool:
        """Whether what has this probability happens."""
        return self.uniform() < probability

    def choice(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the options, by weights that need not add up to 1."""
        shares = [1.0] * len(options) if weights is None else weights
        left = self.uniform() * sum(shares)
        for option, share in zip(options, shares, strict=True):
            left -= share
            if left < 0:
                return option
        return options[-1]

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """[count] numbers from 0 up to 1, the same as one by one."""
        return uniform(self._words(count))

    def normals(self, count: int) -> NDArray[np.float64]:
        """[count] nearly normal numbers, the same as one by one."""
        words = self._words(count)
        total = sum((words >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48))
        return (np.asarray(total, np.float64) / 65536 - 2 + 2.0**-15) * 1.7320508075688772

    def _words(self, count: int) -> NDArray[np.uint64]:
        first, self._next = self._next, self._next + count
        return hash64(np.uint64(self._start) + np.arange(first, self._next, dtype=np.uint64))
