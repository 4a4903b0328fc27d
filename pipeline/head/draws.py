"""Random numbers on the device, each a hash of integers: the same on any number of ranks, and after any resume."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.hashing import hash64


def uniform(numbers: torch.Tensor, *parts: int) -> torch.Tensor:
    """A float64 in [0, 1) for each of `numbers` (int64): `pipeline.hashing.uniform` of the hash of (parts, number)."""
    key = int(hash64(*parts).view(np.int64)[0])
    # the upper 53 bits
    return _shift_right(_mix(numbers + key), 11).double() * 2.0**-53


def normal(numbers: torch.Tensor, *parts: int) -> torch.Tensor:
    """A float64 of the standard normal distribution for each of `numbers`, by its inverse; never infinite."""
    return torch.special.ndtri(uniform(numbers, *parts).clamp(min=2.0**-54))


def _mix(state: torch.Tensor) -> torch.Tensor:
    """splitmix64 on int64 tensors, whose products wrap as uint64's do (see `pipeline.hashing`)."""
    z = state + -0x61C8864680B583EB
    z = (z ^ _shift_right(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shift_right(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shift_right(z, 31)


def _shift_right(value: torch.Tensor, bits: int) -> torch.Tensor:
    """A shift that brings in zeros; int64's own brings in the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
