"""Bytes of any sample by its id: memory-mapped tars and the set's binary index."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.reading.mapped import map_file
from pipeline.shards.format.index import open_index
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.format.presence import check_size, check_tars

# A quarter of what the kernel allows a process. A rank reads from its share of data.streams × data.window tars side by
# side, thousands at the most; if there were more, each would be mapped again, which costs tens of microseconds.
MAPS = 2**14


class ShardSet:
    """A folder of shards, open for reading; ids count samples through the tars in the manifest's order.

    Every rank of a host maps the same files, so they share one page-cache copy; opening reads the manifest and
    the index's header only, whatever the number of samples. The `MAPS` tars that were read last stay mapped, and
    so do those of images that are still referred to; none of them holds a file descriptor.

    Raises:
        ShardError: when the folder, the index or a tar is missing, cut short, or not what the manifest says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self._index = open_index(folder, self.manifest)
        self._first_ids = self.manifest.first_rows
        self._paths = [folder / tar.name for tar in self.manifest.tars]
        check_tars(folder, self.manifest)
        # A map that falls out is not closed but let go: images that are still in use keep it alive.
        self._map = lru_cache(MAPS)(lambda tar: map_file(self._paths[tar]))

    @property
    def samples_per_tar(self) -> tuple[int, ...]:
        """Samples in each tar, as `Order` takes them."""
        return tuple(tar.samples for tar in self.manifest.tars)

    def labels(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The identity of each sample, a line number of ``identities.txt``.

        Raises:
            ShardError: naming the tar, when a label lies outside the manifest's identities.
        """
        labels = self._index["label"][ids].astype(np.int64)
        outside = np.flatnonzero(labels >= self.manifest.identities)
        if len(outside):
            first = int(ids[outside[0]])
            raise ShardError(
                f"{self.folder / 'index.npy'}: sample {first} in {self.tar_name(first)} has label "
                f"{labels[outside[0]]}, wanted less than {self.manifest.identities} identities; shard again"
            )
        return labels

    def read(self, ids: Sequence[int] | np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """The encoded image of each sample, a ``uint8`` view into the mapped tar: nothing is copied.

        Raises:
            ShardError: naming the tar, when it is no longer there or has another size.
        """
        tars = np.searchsorted(self._first_ids, ids, side="right") - 1
        # A tar that was cut after it was mapped would kill the process by SIGBUS. To ask for its size costs 4 µs a tar;
        # to open it and copy by pread, 13 µs an image. What is cut in the milliseconds before its bytes are decoded, or
        # is shown late by a network file system, still kills.
        for tar in np.unique(tars).tolist():
            check_size(self._paths[tar], self.manifest.tars[tar].bytes)
        rows = self._index[np.asarray(ids)]
        return [
            self._map(tar)[start : start + size]
            for tar, start, size in zip(tars.tolist(), rows["offset"].tolist(), rows["size"].tolist(), strict=True)
        ]

    def tar_name(self, sample: int) -> str:
        """The tar that holds `sample`."""
        return self.manifest.tars[int(np.searchsorted(self._first_ids, sample, side="right")) - 1].name

    def describe(self, sample: int) -> str:
        """Where `sample` lies, in the words of a log line: key, tar and byte range."""
        row, tar = self._index[sample], self.tar_name(sample)
        key = _key_before(self.folder / tar, int(row["offset"]))
        return f"sample {sample} ({key}{tar}, {row['size']} bytes at {row['offset']})"


def _key_before(tar: Path, offset: int) -> str:
    """The name in the tar's header before `offset`, with a comma; empty if it cannot be read.

    Read from the file and not from its map: what is described may have been cut.
    """
    try:
        with tar.open("rb") as file:
            file.seek(offset - 512)
            name = file.read(100).split(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""
    return f"{name}, " if name else ""
