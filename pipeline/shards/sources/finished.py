"""A finished set as a source: its own samples under its own labels, wherever the tars lie.

So a set over the tars of others (a subset, a merged or a cleaned one) becomes tars that hold its samples and no others.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.format.index import open_index, sound_index
from pipeline.shards.format.manifest import Manifest
from pipeline.shards.format.names import read_identities
from pipeline.shards.format.presence import check_tars
from pipeline.shards.sources.tar_folder import TarSource, texts_of
from pipeline.shards.sources.tar_listing import PLACE
from pipeline.shards.workers import each_done


@dataclass(frozen=True)
class SetSource(TarSource):
    """Samples of a set in the order of its index."""

    manifest: Manifest = field(kw_only=True)

    def digest(self) -> str:
        """That of the manifest, which has those of the index, the names and every tar."""
        return self.manifest.digest


def open_set(folder: Path, workers: int = 1) -> SetSource:
    """List the samples of the set in `folder`; in `workers` processes, since the keys are in the tars.

    Raises:
        ShardError: there is no sound set, or one of its tars is not there or was made anew.
        NotWrittenError: a tar cannot be read.
    """
    manifest = Manifest.load(folder)
    check_tars(folder, manifest)
    rows = sound_index(folder, manifest)
    places = np.zeros(len(rows), PLACE)
    places["tar"] = np.repeat(np.arange(len(manifest.tars)), [tar.samples for tar in manifest.tars])
    places["image"], places["image_size"] = rows["offset"], rows["size"]
    for first, texts in each_done(partial(_texts, folder, manifest), range(len(manifest.tars)), workers):
        own = places[first : first + len(texts)]
        own["json"], own["json_size"] = texts.T
    tars = [tar.name for tar in manifest.tars]
    identities, labels = read_identities(folder, manifest), rows["label"].astype(np.uint32)
    return SetSource(folder, tars, identities, labels, (), places, kind="set", manifest=manifest)


def _texts(folder: Path, manifest: Manifest, tar: int) -> tuple[int, NDArray[np.int64]]:
    """First row of a tar, and [samples, 2] offset and size of the JSON of each of its samples."""
    first, stop = manifest.first_rows[tar : tar + 2].tolist()
    images = open_index(folder, manifest)["offset"][first:stop].tolist()
    return first, np.array(texts_of(folder / manifest.tars[tar].name, images), np.int64).reshape(-1, 2)
