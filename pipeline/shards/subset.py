"""Some people, or fewer images, of a set: choices by name and by count."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.index import open_index
from pipeline.shards.manifest import Manifest, ShardError
from pipeline.shards.plan import permutation
from pipeline.shards.views import read_identities, select

Labels = NDArray[np.integer]
Mask = NDArray[np.bool_]


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
        keep: a file of identities, one a line; all others are left out.
        drop: a file of identities to leave out.
        people: number of identities, drawn by `seed`.
        min_images: leave out identities with fewer.
        max_images: at most so many images of each identity.
        seed: of the draw.

    Raises:
        ShardError: a file names an identity that is not in the set, nothing is left, or `out` is not new.
    """
    manifest = Manifest.load(folder)
    labels = open_index(folder, manifest)["label"]
    names = read_identities(folder, manifest)
    chosen = np.ones(len(labels), bool)
    if keep:
        chosen &= of_identities(labels, np.isin(names, _names(keep, names)))
    if drop:
        chosen &= ~of_identities(labels, np.isin(names, _names(drop, names)))
    if people:
        chosen &= of_some_people(labels, len(names), people, seed)
    if min_images:
        chosen &= with_at_least(labels, min_images)
    if max_images:
        chosen &= at_most_each(labels, max_images)
    return select(folder, out, chosen, kind="subset")


def _names(file: Path, known: list[str]) -> list[str]:
    """Names of a file, one a line; a name that is not in the set is more likely a mistake than intended."""
    try:
        wanted = [line for line in file.read_text().splitlines() if line]
    except OSError as error:
        raise ShardError(f"{file}: {error.strerror}") from error
    strange = sorted(set(wanted) - set(known))
    if strange:
        raise ShardError(f"{file}: {len(strange)} names are not in identities.txt, the first {strange[0]!r}")
    return wanted


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
