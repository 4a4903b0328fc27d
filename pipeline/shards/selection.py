"""Which samples of a set to keep: pure functions from labels to masks, both [samples]."""

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.shuffle import permutation

Labels = NDArray[np.integer]
Mask = NDArray[np.bool_]


def of_identities(labels: Labels, wanted: Mask) -> Mask:
    """Samples of the identities for which `wanted` ([identities]) is true."""
    return wanted[labels]


def of_some_people(labels: Labels, identities: int, people: int, seed: int) -> Mask:
    """All samples of `people` identities, drawn by the seed; of more people a superset."""
    wanted = np.zeros(identities, bool)
    wanted[permutation(identities, seed)[:people]] = True
    return wanted[labels]


def with_at_least(labels: Labels, images: int) -> Mask:
    """Samples of identities that have at least so many."""
    return np.bincount(labels)[labels] >= images


def at_most_each(labels: Labels, images: int) -> Mask:
    """The first so many samples of each identity; a set is shuffled, so these are a random choice."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    keep = np.empty(len(labels), bool)
    keep[order] = np.arange(len(labels)) - starts < images
    return keep
