"""InsightFace's verification sets (lfw.bin, cfp_fp.bin, agedb_30.bin, calfw.bin, cplfw.bin), read without trust.

Such a file is a pickle of ``(images, same)``: encoded images two by two, and one flag a pair. Images are bytes or NumPy
arrays of bytes (``build_eval_pack.py``), flags booleans or 0 and 1. Folds are ten consecutive tenths, as InsightFace's
``verification.py`` splits them (KFold, no shuffle).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.protocols.folds import people_by_flags, tenths
from pipeline.evaluation.protocols.pairs_file import Row
from pipeline.evaluation.protocols.plain_pickle import Array, read
from pipeline.files import sync_all, write_file


@dataclass(frozen=True)
class BinSet:
    """The encoded images, two for each pair in order, and the pairs' flags."""

    images: list[bytes]
    same: list[bool]


def read_bin(file: Path) -> BinSet:
    """Read a ``.bin`` set; raises ValueError naming the opcode, name or value that such a set does not hold."""
    try:
        encoded, flags = _pair(read(file.read_bytes()))
        images = list(map(_image, _flat(_items(encoded))))
        same = list(map(_flag, _items(flags)))
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"{file}: not an InsightFace verification set: {error}") from None
    if len(images) != 2 * len(same):
        raise ValueError(f"{file}: got {len(images)} images for {len(same)} flags, wanted two for each")
    return BinSet(images, same)


def _pair(value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"got {type(value).__name__}, wanted a pair of lists (images, flags)")
    return value


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, Array) and value.values is not None:
        return list(value.values.tolist())
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"got {type(value).__name__}, wanted a pair of lists (images, flags)")  # noqa: TRY004
    return value


def _flat(items: Sequence[Any]) -> Sequence[Any]:
    """Images two by two, whether each pair is a list of its own or not."""
    if items and all(isinstance(item, (list, tuple)) and len(item) == 2 for item in items):
        return list(chain.from_iterable(items))
    return items


def _image(value: Any) -> bytes:
    if isinstance(value, Array) and isinstance(value.values, np.ndarray) and value.values.dtype == np.uint8:
        value = value.values.base if isinstance(value.values.base, bytes) else value.values.tobytes()
    if not isinstance(value, bytes):
        raise ValueError(f"got {type(value).__name__} among the images, wanted encoded images")  # noqa: TRY004
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, int):  # not printed: lists that share lists take exponential time to print
        raise ValueError(f"got {type(value).__name__} among the flags, wanted booleans, 0 or 1")  # noqa: TRY004
    if value not in {0, 1}:
        raise ValueError(f"got the flag {value!r:.40}, wanted a boolean, 0 or 1")
    return bool(value)


def extract(content: BinSet, folder: Path) -> list[Row]:
    """Write the images below `folder`, one folder for each identity, and return the pairs' rows.

    A set does not name its people: its "same" flags do (see `people_by_flags`). Images of equal bytes are one image.
    """
    digest_of: dict[int, str] = {}  # an image that the file holds once and names often is looked at once
    for image in content.images:
        if id(image) not in digest_of:
            digest_of[id(image)] = hashlib.sha256(image).hexdigest()[:16]
    names = [digest_of[id(image)] for image in content.images]
    person = people_by_flags(names, content.same)
    paths = []
    files = {}
    for name, image in zip(names, content.images, strict=True):
        path = f"{person[name]}/{name}{_suffix(image)}"
        paths.append(path)
        files[folder / path] = image
    for file, image in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, image, synced=False)
    sync_all(files)  # after all are on their way: to wait for each would take minutes
    rows = []
    for i, (fold, same) in enumerate(zip(tenths(len(content.same)), content.same, strict=True)):
        a, b = 2 * i, 2 * i + 1
        rows.append(Row(str(fold), paths[a], paths[b], same, person[names[a]], person[names[b]]))
    return rows


def _suffix(image: bytes) -> str:
    return ".png" if image.startswith(b"\x89PNG") else ".jpg"
