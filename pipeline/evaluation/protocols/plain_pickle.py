"""Pickles of plain values, read by hand: lists, tuples, bytes, numbers and NumPy arrays, and nothing is ever called.

Unpickling runs whatever a file says. Here each opcode is looked up in a table, and each name that a pickle may import
in an allow-list: what NumPy and Python 3 write for arrays and bytes, which this file carries out itself.
Shared values are shared here too, so time and memory are bounded by the file's size.
"""

from __future__ import annotations

import codecs
import io
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_MARK = object()
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_KINDS = re.compile(r"[biu][1248]")


@dataclass
class Array:
    """A NumPy array as its pickle describes it; `values` after its state was read."""

    values: Any = None


@dataclass
class _Kind:
    code: str
    order: str = "|"


@dataclass(frozen=True)
class _Name:
    """A name that a pickle imports: what it stands for, given its arguments."""

    text: str
    means: Callable[..., Any]


def read(data: bytes) -> Any:
    """The value of a pickle of any protocol: lists, tuples, bytes, str, numbers, booleans, None and `Array`.

    Raises ValueError naming the opcode or name that is not on the lists, LookupError or TypeError for a torn file.
    """
    machine = _Machine()
    for opcode, argument in _opcodes(data):
        if opcode == "STOP":
            return machine.stack.pop()
        if opcode not in _ACTIONS:
            raise ValueError(f"got opcode {opcode}, wanted only lists, tuples, bytes, numbers and NumPy arrays")
        _ACTIONS[opcode](machine, argument)
    raise ValueError("got no end, wanted a STOP opcode")


def _opcodes(data: bytes) -> Iterator[tuple[str, Any]]:
    stream = io.BytesIO(data)
    while code := stream.read(1):
        opcode = _OPCODES.get(code.decode("latin-1"))
        if opcode is None:
            raise ValueError(f"got byte {code!r}, wanted an opcode")
        if opcode.name == "STRING":  # of Python 2's protocol 0: pickletools reads ASCII only
            quoted = stream.readline().strip()
            yield opcode.name, codecs.escape_decode(quoted[1:-1])[0]
        else:
            yield opcode.name, opcode.arg.reader(stream) if opcode.arg is not None else None
    raise ValueError("got no end, wanted a STOP opcode")


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("ascii")
    if not isinstance(value, str):  # never printed: lists that share lists take exponential time to print
        raise ValueError(f"got {type(value).__name__} for a name, wanted a string")  # noqa: TRY004 - a fault of the file
    return value


def _kind(code: Any, *_: Any) -> _Kind:
    name = _text(code)
    if not _KINDS.fullmatch(name):
        raise ValueError(f"got a NumPy type {name!r:.40}, wanted booleans or whole numbers")
    return _Kind(name)


def _values(kind: Any, data: Any) -> Any:
    if not isinstance(kind, _Kind) or not isinstance(data, bytes):
        raise ValueError("got an array without type or data, wanted both")  # noqa: TRY004 - a fault of the file
    order = kind.order if kind.order in {"<", ">"} else "<"
    return np.frombuffer(data, np.dtype(order + kind.code))


def _encode(text: Any, encoding: Any) -> bytes:
    if _text(encoding) not in {"latin1", "latin-1"}:
        raise ValueError(f"got the encoding {_text(encoding)!r:.40}, wanted latin1")
    return bytes(text, "latin-1")


# What NumPy of every version writes, and what Python 3 writes for bytes in protocols 0 to 2.
_NUMPY: dict[str, Callable[..., Any]] = {
    "multiarray _reconstruct": lambda *_: Array(),
    "multiarray scalar": lambda kind, data: _values(kind, data)[0].item(),
    "numeric _frombuffer": lambda data, kind, *_: Array(_values(kind, data)),
}
_ALLOWED: dict[str, Callable[..., Any]] = {
    **{f"numpy.core.{name}": means for name, means in _NUMPY.items()},
    **{f"numpy._core.{name}": means for name, means in _NUMPY.items()},  # since NumPy 2
    "numpy dtype": _kind,
    "numpy ndarray": lambda *_: Array(),
    "_codecs encode": _encode,
    "__builtin__ bytes": lambda: b"",
    "builtins bytes": lambda: b"",
}


class _Machine:
    """The part of a pickle machine that builds plain values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_bytes(self, value: Any) -> None:
        # Python 2 wrote the images as strings, which pickletools decodes as latin-1: that gives the bytes back.
        self.stack.append(value.encode("latin-1") if isinstance(value, str) else bytes(value))

    def gather(self, kind: type, count: int | None = None) -> None:
        items = self.pop_to_mark() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(kind(items))

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("got values to append to no list, wanted a list")  # noqa: TRY004 - a fault of the file
        self.stack[-1].extend(items)

    def remember(self, key: int | None) -> None:
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def name(self, text: str) -> None:
        if text not in _ALLOWED:
            raise ValueError(f"got the name {text.replace(' ', '.')!r}, wanted only those of NumPy arrays and bytes")
        self.stack.append(_Name(text, _ALLOWED[text]))

    def name_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(f"{_text(module)} {_text(name)}")

    def reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise ValueError("got something else to call, wanted an allowed name")  # noqa: TRY004 - a fault of the file
        self.stack.append(name.means(*arguments))

    def build(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, _Kind):  # (version, byte order, ...)
            value.order = _text(state[1])
        elif isinstance(value, Array):  # (version, shape, type, column-major, data)
            value.values = _values(state[2], state[4])
        else:
            raise ValueError("got a state for something else, wanted an array")  # noqa: TRY004 - a fault of the file


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Machine.push_bytes),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push_bytes),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
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
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda machine, _: machine.name_from_stack(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), lambda machine, key: machine.push(machine.memo[key])),
    **dict.fromkeys(("PROTO", "FRAME"), lambda _machine, _: None),
}
