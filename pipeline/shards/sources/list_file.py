"""A list file: one image a line, its path and its identity, with a tab (or the last space) between."""

from array import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.errors import ShardError
from pipeline.shards.sources import SetAside
from pipeline.shards.sources.files import FileSource
from pipeline.shards.sources.folder import printable


def read_list(path: Path) -> FileSource:
    """Read a list of images in the order of its lines; paths are relative to the list's folder, or absolute.

    Identities are names or numbers. Labels follow the sorted names; when all are numbers, their size, and the names
    get leading zeros. Empty lines and lines that begin with `#` are skipped; a line without an identity is set aside.

    Raises:
        ShardError: no such file, not UTF-8, no image in it, or an identity that is not printable.
    """
    numbers_of: dict[str, int] = {}
    identity_of = array("q")
    paths = bytearray()
    lengths = array("q")
    set_aside: list[SetAside] = []
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                text = line.rstrip("\r\n")
                if not text.strip() or text.startswith("#"):
                    continue
                image, _, identity = text.rpartition("\t" if "\t" in text else " ")
                if not image.strip() or not identity.strip():
                    set_aside.append(SetAside(f"{path.name}:{number}", "no identity: wanted path, tab, identity"))
                    continue
                paths += image.encode()
                lengths.append(len(image))
                identity_of.append(numbers_of.setdefault(identity, len(numbers_of)))
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ShardError(f"{path}: not UTF-8 ({error})") from error
    if not lengths:
        raise ShardError(f"{path}: got no images, wanted lines of path, tab, identity")
    identities, rank = _sorted_identities(list(numbers_of), path)
    ends = np.cumsum(lengths, dtype=np.int64)
    labels = rank[np.asarray(identity_of)]
    return FileSource("list", path.parent, identities, labels, set_aside, paths.decode(), ends)


def number_names(numbers: NDArray[np.int64]) -> list[str]:
    """Names of ascending non-negative numbers, with leading zeros so that they sort as the numbers do."""
    width = len(str(numbers[-1]))
    return [f"{number:0{width}d}" for number in numbers.tolist()]


def _sorted_identities(names: list[str], path: Path) -> tuple[list[str], NDArray[np.uint32]]:
    """Names in label order, and [names] the label of each of `names`."""
    numbers = [int(name) for name in names if name.isascii() and name.isdecimal()]
    # Where "7" and "07" are two people, names stay as they are.
    if len(set(numbers)) == len(names):
        order = sorted(range(len(names)), key=numbers.__getitem__)
        identities = number_names(np.array(sorted(numbers)))
    else:
        order = sorted(range(len(names)), key=names.__getitem__)
        identities = [printable(names[i], path) for i in order]
    rank = np.empty(len(names), np.uint32)
    rank[order] = np.arange(len(names))
    return identities, rank
