"""A list file: one image a line, with its path, its identity and perhaps more, in any form of `list_rows`."""

import json
import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.names import BYTE_ORDER_MARK, UNUSABLE, usable_name, warn_respelled
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.sources.columns import HUGGING_FACE, Columns
from pipeline.shards.sources.files import FileSource, Texts
from pipeline.shards.sources.labels import sorted_identities
from pipeline.shards.sources.list_rows import rows_of

logger = logging.getLogger(__name__)


class Listing(NamedTuple):
    """What a list says, in the order of the fields of `FileSource`."""

    identities: Sequence[str]
    labels: NDArray[np.uint32]
    set_aside: Sequence[SetAside]
    paths: Texts
    notes: Texts | None


def read_list(path: Path, columns: Columns = HUGGING_FACE) -> FileSource:
    """Images of a list file; paths are relative to the list's folder, or absolute.

    Raises:
        ShardError: no such file, or as `parse_list` does.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            return FileSource("list", str(path.parent), *parse_list(lines, str(path), columns))
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}") from error


def parse_list(lines: Iterable[str], name: str, columns: Columns = HUGGING_FACE) -> Listing:
    """Images in the order of the lines.

    Identities are names or numbers and keep their spelling. Labels follow the sorted names; if all are numbers, their
    size. An identity that cannot be used sets its images aside, as does a line without one. Empty lines are skipped.

    Raises:
        ShardError: not UTF-8, no image in it, or a table without the columns.
    """
    numbers_of: dict[str, int] = {}
    identity_of = array("q")
    paths, notes = bytearray(), bytearray()
    lengths, note_lengths = array("q"), array("q")
    set_aside: list[SetAside] = []
    respelled = 0
    try:
        for line, image, identity, fields in rows_of(_without_mark(lines, name), name, columns):
            if not image.strip() or not identity.strip():
                where = f"{name.rpartition('/')[2]}:{line}"
                set_aside.append(SetAside(where, "no identity: wanted path, tab, identity"))
                continue
            if "\0" in image:  # in which the system sees the end of the path
                set_aside.append(SetAside(image, "a null character in the path"))
                continue
            person = usable_name(identity)
            if person is None:
                set_aside.append(SetAside(image, f"identity {identity!r}: {UNUSABLE}"))
                continue
            respelled += person != identity
            paths += image.encode()
            lengths.append(len(image))
            identity_of.append(numbers_of.setdefault(person, len(numbers_of)))
            note = json.dumps(fields).encode() if fields else b""
            notes += note
            note_lengths.append(len(note))
    except UnicodeDecodeError as error:
        raise ShardError(f"{name}: not UTF-8 ({error})") from error
    if not lengths:
        first = f"; {set_aside[0].path}: {set_aside[0].reason}" if set_aside else ""
        raise ShardError(f"{name}: got no images, wanted lines of path, tab, identity{first}")
    warn_respelled(name, respelled)
    identities, rank = sorted_identities(list(numbers_of))
    noted = _texts(notes, note_lengths) if notes else None
    return Listing(identities, rank[np.asarray(identity_of)], set_aside, _texts(paths, lengths), noted)


def _without_mark(lines: Iterable[str], name: str) -> Iterator[str]:
    """Lines without a byte-order mark before the first."""
    lines = iter(lines)
    first = next(lines, "")
    if first.startswith(BYTE_ORDER_MARK):
        logger.warning("%s: begins with a byte-order mark, which is left out", name)
    yield first.removeprefix(BYTE_ORDER_MARK)
    yield from lines


def _texts(joined: bytearray, lengths: "array[int]") -> Texts:
    return Texts(joined.decode(), np.cumsum(lengths, dtype=np.int64))
