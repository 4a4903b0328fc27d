"""Some people, or fewer images, of a set: choices by name and by count."""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.format.index import sound_index
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.format.names import read_identities, read_names
from pipeline.shards.making.plan import permutation
from pipeline.shards.views.select import select

logger = logging.getLogger(__name__)

Labels = NDArray[np.integer]
Mask = NDArray[np.bool_]

SHOWN = 5  # names in a message


def subset(
    folder: Path,
    out: Path,
    *,
    keep: Path | None = None,
    drop: Path | None = None,
    people: int | None = None,
    min_images: int | None = None,
    max_images: int | None = None,
    seed: int = 0,
) -> Manifest:
    """Write to `out` the samples of `folder` that pass every choice; the images stay where they are.

    Args:
        folder: of a set.
        out: a new folder.
        keep: a list of identities (`read_names`); all others are left out.
        drop: a list of identities to leave out; one that the set does not have is warned of.
        people: number of identities, drawn by `seed`.
        min_images: leave out identities with fewer.
        max_images: at most so many images of each identity.
        seed: of the draw.

    Raises:
        ShardError: `keep` names an identity that the set does not have, nothing is left, or `out` is not new.
    """
    manifest = Manifest.load(folder)
    labels = sound_index(folder, manifest)["label"]
    names = read_identities(folder, manifest)
    chosen = np.ones(len(labels), bool)
    if keep:
        wanted = read_names(keep)
        if absent := _absent(wanted, names):
            raise ShardError(f"{keep}: {folder} has no {absent}")
        chosen &= of_identities(labels, _are_in(names, wanted))
    if drop:
        unwanted = read_names(drop)
        if absent := _absent(unwanted, names):
            logger.warning("%s: %s has no %s", drop, folder, absent)
        chosen &= ~of_identities(labels, _are_in(names, unwanted))
    if people:
        chosen &= of_some_people(labels, len(names), people, seed)
    if min_images:
        chosen &= with_at_least(labels, min_images)
    if max_images:
        chosen &= at_most_each(labels, max_images)
    return select(folder, out, chosen, kind="subset")


def _absent(listed: list[str], known: list[str]) -> str:
    """Those of a list that are no identities of the set, in a few words; empty if all are."""
    absent = sorted(set(listed) - set(known))
    shown = ", ".join(map(repr, absent[:SHOWN]))
    return f"{shown} ({len(absent):,} of {len(set(listed)):,} names of the list)" if absent else ""


def _are_in(names: list[str], listed: list[str]) -> Mask:
    """[names] whether each is in a list."""
    some = set(listed)
    return np.fromiter((name in some for name in names), bool, len(names))


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
