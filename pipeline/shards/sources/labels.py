"""Labels: numbers or names as a source has them, made 0, 1, 2, … in the order of the identities."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def ranked(parts: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """The distinct numbers of all parts in ascending order, and [samples] the place of each sample's there.

    As `np.unique` with its inverse, which would take 40 bytes a sample meanwhile; this takes those of a part.
    """
    distinct = np.unique(np.concatenate([np.unique(part) for part in parts]))
    places = np.empty(sum(map(len, parts)), np.uint32)
    first = 0
    for part in parts:
        places[first : first + len(part)] = np.searchsorted(distinct, part)
        first += len(part)
    return distinct, places


def number_names(numbers: NDArray[np.int64]) -> list[str]:
    """Names of ascending non-negative numbers, with leading zeros so that they sort as the numbers do."""
    width = len(str(numbers[-1]))
    return [f"{number:0{width}d}" for number in numbers.tolist()]


def sorted_identities(names: list[str]) -> tuple[list[str], NDArray[np.uint32]]:
    """Names in label order as they are spelled, and [names] the label of each of `names`."""
    numbers = [int(name) for name in names if name.isascii() and name.isdecimal()]
    # If "7" and "07" are two people, the order is that of the letters.
    keys: Sequence[int | str] = numbers if len(set(numbers)) == len(names) else names
    order = sorted(range(len(names)), key=keys.__getitem__)
    rank = np.empty(len(names), np.uint32)
    rank[order] = np.arange(len(names))
    return [names[i] for i in order], rank
