"""Some people, or fewer images, of a set: choices by name and by count."""

from pathlib import Path

import numpy as np

from pipeline.shards import selection
from pipeline.shards.errors import ShardError
from pipeline.shards.index import open_index
from pipeline.shards.manifest import Manifest
from pipeline.shards.views import read_identities, select


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
        people: so many identities, drawn by `seed`.
        min_images: leave out identities with fewer.
        max_images: so many images of each identity.
        seed: of the draw.

    Raises:
        ShardError: a file names someone who is not in the set, nothing is left, or `out` is not new.
    """
    manifest = Manifest.load(folder)
    labels = open_index(folder, manifest)["label"]
    names = read_identities(folder, manifest)
    chosen = np.ones(len(labels), bool)
    if keep:
        chosen &= selection.of_identities(labels, np.isin(names, _names(keep, names)))
    if drop:
        chosen &= ~selection.of_identities(labels, np.isin(names, _names(drop, names)))
    if people:
        chosen &= selection.of_some_people(labels, len(names), people, seed)
    if min_images:
        chosen &= selection.with_at_least(labels, min_images)
    if max_images:
        chosen &= selection.at_most_each(labels, max_images)
    return select(folder, out, chosen, kind="subset")


def _names(file: Path, known: list[str]) -> list[str]:
    """Names of a file, one a line; one that is not in the set is more likely a slip than meant."""
    try:
        wanted = [line for line in file.read_text().splitlines() if line]
    except OSError as error:
        raise ShardError(f"{file}: {error.strerror}") from error
    strange = sorted(set(wanted) - set(known))
    if strange:
        raise ShardError(f"{file}: {len(strange)} names are not in identities.txt, the first {strange[0]!r}")
    return wanted
