"""Random numbers as a pure function of integers: what is drawn does not depend on what was drawn before."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# splitmix64 (Steele, Lea & Flood, OOPSLA 2014): the Weyl increment and the two multipliers of its finalizer.
INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_INTEGERS = int(INCREMENT), int(_MIX_1), int(_MIX_2)  # for `hash_int`
_MASK = 2**64 - 1


def hash64(*parts: int | NDArray[Any]) -> NDArray[np.uint64]:
    """A hash of integers from 0 to 2^64 - 1, one after another; arrays broadcast, and the result has at least one axis.

    A change in any part, by however little, changes every bit of the result with probability one half.
    """
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        # Arrays, never scalars: NumPy warns when a scalar wraps, and wrapping is what the hash does.
        state = mix64(state + np.atleast_1d(np.asarray(part, dtype=np.uint64)) + INCREMENT)
    return state


def hash_int(*parts: int) -> int:
    """`hash64` of single integers, without the time that NumPy takes for an array of one."""
    increment, mix_1, mix_2 = _INTEGERS
    state = 0
    for part in parts:
        state = (state + part + increment) & _MASK
        state = ((state ^ (state >> 30)) * mix_1) & _MASK
        state = ((state ^ (state >> 27)) * mix_2) & _MASK
        state ^= state >> 31
    return state


def uniform(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Hashes as numbers in [0, 1): their upper 53 bits, which is as many as a float64 holds."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer: a bijection of 64 bits, so that different states never meet."""
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))
