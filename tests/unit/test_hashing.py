"""The hash against splitmix64 in plain integers, and the numbers that come of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.hashing import hash64, hash_int, uniform

WORDS = st.integers(0, 2**64 - 1)


def splitmix64(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_equals_plain_integers(parts: list[int]) -> None:
    state = 0
    for part in parts:
        state = splitmix64((state + part) % 2**64)
    assert hash64(*parts).tolist() == [state]
    assert hash_int(*parts) == state
    assert uniform(hash64(*parts))[0] == (state >> 11) / 2**53


def test_the_published_generators_first_numbers() -> None:
    # Steele, Lea and Flood's generator from state 0, as in Java's SplittableRandom and the reference C code
    numbers = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    counters = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert hash64(counters).tolist() == numbers


def test_arrays_broadcast() -> None:
    table = hash64(7, np.arange(3)[:, None], np.arange(5))
    assert table.shape == (3, 5)
    assert table[2, 4] == hash64(7, 2, 4)[0]


def test_the_highest_hash_is_below_one() -> None:
    assert uniform(np.array([0, 2**64 - 1], np.uint64)).tolist() == [0.0, 1 - 2.0**-53]


def test_what_is_no_word_is_refused() -> None:
    with pytest.raises(OverflowError):
        hash64(2**64)
