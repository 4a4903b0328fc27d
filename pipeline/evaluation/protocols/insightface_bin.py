"""InsightFace's verification sets (lfw.bin, cfp_fp.bin, agedb_30.bin, calfw.bin, cplfw.bin), read without trust.

Such a file is a pickle of ``(images, same)``: encoded images two by two, and one flag a pair. Unpickling runs whatever
the file says, so here its opcodes are interpreted by hand: lists, tuples, bytes and booleans, and nothing that could
import or call. Folds are ten consecutive tenths, as InsightFace's ``verification.py`` splits them (KFold, no shuffle).
"""

from __future__ import annotations

import hashlib
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluation.protocols.pairs import Row
from pipeline.files import sync_all, write_file

FOLDS = 10
_MARK = object()


@dataclass(frozen=True)
class BinSet:
    """The encoded images, two for each pair in order, and the pairs' flags."""

    images: list[bytes]
    same: list[bool]


def read_bin(file: Path) -> BinSet:
    """Read a ``.bin`` set; raises ValueError naming the opcode or value that such a set does not hold."""
    try:
        content = _interpret(file.read_bytes())
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"{file}: not an InsightFace verification set: {error}") from None
    if not (isinstance(content, tuple) and len(content) == 2 and all(isinstance(part, list) for part in content)):
        raise ValueError(f"{file}: got {type(content).__name__}, wanted a pair of lists (images, flags)")
    images, same = content
    if not all(isinstance(image, bytes) for image in images) or not all(isinstance(flag, bool) for flag in same):
        raise ValueError(f"{file}: got other values than encoded images and flags, wanted bytes and booleans")
    if len(images) != 2 * len(same):
        raise ValueError(f"{file}: got {len(images)} images for {len(same)} flags, wanted two for each")
    return BinSet(images, same)


def extract(content: BinSet, folder: Path) -> list[Row]:
    """Write the images below `folder`, one folder for each identity, and return the pairs' rows.

    A set does not name its people. Images of equal bytes are one image, and a "same" flag makes the two images' people
    one; two people who are never compared as the same stay two, so the bootstrap may take one person for several.
    """
    names = [hashlib.sha256(image).hexdigest()[:16] for image in content.images]
    person = _people(names, content.same)
    paths = [f"{person[name]}/{name}.jpg" for name in names]
    files = {folder / path: image for path, image in zip(paths, content.images, strict=True)}
    for file, image in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, image, synced=False)
    sync_all(files)  # after all are on their way: to wait for each would take minutes
    count = len(content.same)
    return [
        Row(str(i * FOLDS // count + 1), paths[2 * i], paths[2 * i + 1], same) for i, same in enumerate(content.same)
    ]


def _people(names: list[str], same: list[bool]) -> dict[str, str]:
    """A person's label for each image: the first image's name among all that "same" flags connect."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for i, flag in enumerate(same):
        if flag:
            parent[root(names[2 * i + 1])] = root(names[2 * i])
    return {name: root(name) for name in names}


class _Machine:
    """The part of a pickle machine that builds lists and tuples of values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        # Python 2 wrote the images as strings, which pickletools decodes as latin-1: that gives the bytes back.
        self.stack.append(value.encode("latin-1") if isinstance(value, str) else value)

    def push_flag(self, value: Any) -> None:
        if not isinstance(value, bool):
            raise ValueError(  # noqa: TRY004 - a fault of the file, not of the caller
                f"got the number {value}, wanted a flag"
            )
        self.stack.append(value)

    def gather(self, kind: type, count: int | None = None) -> None:
        items = self.pop_to_mark() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(kind(items))

    def extend(self, items: list[Any]) -> None:
        self.stack[-1].extend(items)

    def remember(self, key: int | None) -> None:
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING"), _Machine.push),
    "INT": _Machine.push_flag,  # protocols 0 and 1 write True as the number "01"
    "NEWTRUE": lambda machine, _: machine.push_flag(True),
    "NEWFALSE": lambda machine, _: machine.push_flag(False),
    "MARK": lambda machine, _: machine.push(_MARK),
    "EMPTY_LIST": lambda machine, _: machine.gather(list, 0),
    "EMPTY_TUPLE": lambda machine, _: machine.gather(tuple, 0),
    "LIST": lambda machine, _: machine.gather(list),
    "TUPLE": lambda machine, _: machine.gather(tuple),
    "TUPLE1": lambda machine, _: machine.gather(tuple, 1),
    "TUPLE2": lambda machine, _: machine.gather(tuple, 2),
    "TUPLE3": lambda machine, _: machine.gather(tuple, 3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), lambda machine, key: machine.push(machine.memo[key])),
    **dict.fromkeys(("PROTO", "FRAME"), lambda _machine, _: None),
}


def _interpret(data: bytes) -> Any:
    """The value of a pickle of lists, tuples, bytes and booleans."""
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            return machine.stack.pop()
        if opcode.name not in _ACTIONS:
            raise ValueError(f"got opcode {opcode.name}, wanted only lists, tuples, bytes and booleans")
        _ACTIONS[opcode.name](machine, argument)
    raise ValueError("got no end, wanted a STOP opcode")
