"""Which tars a path means, and those among them that are compressed as plain tars beside the output.

A shuffled set reads its samples in random places, which no compressed file allows.
"""

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.files import locked, make_folder, named, write_all, written_whole
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.sources.splits import Choice, choose, matching
from pipeline.shards.sources.tar_walk import compression_of

# Names of tars, as patterns; they may lie in folders of the folder.
TARS = ("*.tar", "*.tar.gz", "*.tgz", "*.tar.bz2", "*.tbz2", "*.tar.xz", "*.txz")
OPENERS: Mapping[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
PIECE = 1 << 20


class TarFiles(NamedTuple):
    """Tars by their names relative to a folder, in their order; those that were unpacked lie elsewhere."""

    folder: Path
    names: Sequence[str]
    unpacked: Mapping[str, Path]

    def path(self, number: int) -> Path:
        """Where a tar is to be read."""
        return self.unpacked.get(self.names[number], self.folder / self.names[number])

    def chosen(self, choice: Choice) -> "TarFiles":
        """Those of the chosen splits.

        Raises:
            ShardError: there are several and none is chosen, or a chosen one is not there.
        """
        return self._replace(names=choose(self.names, choice._replace(pattern="*"), str(self.folder)))


def find_tars(place: Path, pattern: str = "*", copies: Path | None = None) -> TarFiles:
    """One tar, or those in a folder and in its folders; hidden names are skipped.

    Args:
        place: the tar or the folder.
        pattern: of the names of those in a folder.
        copies: folder for the contents of compressed tars; None: they stay as they are, which cannot be read.

    Raises:
        ShardError: there is none of such a name, or a compressed one is damaged.
        NotWrittenError: a tar cannot be read, or the disk has not the room to unpack it.
    """
    if place.is_file():
        folder, found = place.parent, [place.name]
    else:
        folder, found = place, []
        for ending in TARS:
            paths = chain(place.glob(ending), place.glob(f"*/{ending}"))
            found += [path.relative_to(place).as_posix() for path in paths]
        found = [name for name in found if not any(part.startswith(".") for part in name.split("/"))]
    names = matching(sorted(found), pattern, str(place))
    return TarFiles(folder, names, _unpacked(folder, names, copies) if copies else {})


def _unpacked(folder: Path, names: Sequence[str], copies: Path) -> dict[str, Path]:
    """Where the contents lie of those files that are compressed."""
    found = {}
    for name in names:
        with named(folder / name, "not read"), (folder / name).open("rb") as file:
            compression = compression_of(file)
        if compression in OPENERS:
            found[name] = _unpack(folder / name, OPENERS[compression], copies / name)
    return found


def _unpack(path: Path, opener: Any, copy: Path) -> Path:
    """Write what a compressed file holds, whole or not at all, unless it is there; with the file's time."""
    make_folder(copy.parent)
    changed = path.stat().st_mtime_ns
    with locked(copy.with_name(f".{copy.name}.lock")):  # several machines may ask at once
        if copy.is_file() and copy.stat().st_mtime_ns == changed:
            return copy
        with written_whole(copy) as out:
            for piece in _pieces(path, opener):
                write_all(out, piece)
        os.utime(copy, ns=(changed, changed))
    return copy


def _pieces(path: Path, opener: Any) -> Iterator[bytes]:
    with named(path, "not read"), opener(path) as file:
        while True:
            try:
                piece = file.read(PIECE)
            except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
                if isinstance(error, OSError) and error.errno:
                    raise
                raise ShardError(f"{path}: not unpacked: {error}; wanted a whole file") from error
            if not piece:
                return
            yield piece
