"""The order of samples in the tars: a permutation of the sorted listing, cut into nearly equal tars."""

import numpy as np
from numpy.typing import NDArray

# splitmix64 (Steele, Lea & Flood, OOPSLA 2014): the Weyl increment and the two multipliers of its finalizer.
_INCREMENT, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def permutation(samples: int, seed: int) -> NDArray[np.int64]:
    """[samples] permutation of range(samples), the same on every machine and NumPy version.

    Positions are sorted by a hash of (seed, position). The hash is a bijection of 64 bits, so no two tie. NumPy's own
    `permutation` may change between versions (NEP 19), and with it the bytes of every tar.
    """
    with np.errstate(over="ignore"):  # the hash is arithmetic modulo 2**64
        start = _mix(np.array([seed % 2**64], dtype=np.uint64))
        hashes = _mix(start + np.arange(samples, dtype=np.uint64) * np.uint64(_INCREMENT))
    return np.argsort(hashes).astype(np.int64, copy=False)


def cut(samples: int, samples_per_tar: int) -> NDArray[np.int64]:
    """[tars + 1] bounds of nearly equal tars: sizes differ by at most one, none exceeds `samples_per_tar`."""
    tars = -(-samples // samples_per_tar)
    return np.arange(tars + 1, dtype=np.int64) * samples // max(tars, 1)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_MIX_1)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_MIX_2)
    return state ^ (state >> np.uint64(31))
