"""Tensors in a file of the safetensors layout, written with its digest on the way and read by rows.

The layout (8 bytes of header length, a JSON header, then the raw tensors) is written here rather than by the
safetensors package because that copies everything into one bytes object first, and would have to be read again for the
digest; what is written, ``safetensors.safe_open`` reads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pipeline.files import named, write_all

_NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_CHUNK = 1 << 24
_SETTLE = 1 << 26


@dataclass(frozen=True)
class FileFacts:
    """What a whole file must be: its size in bytes and its SHA-256."""

    bytes: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileFacts:
    """Write CPU tensors to `path` and sync it.

    Raises:
        NotWrittenError: naming the file.
    """
    digest = hashlib.sha256()
    written = settled = 0
    with named(path), path.open("wb", buffering=0) as file:
        for piece in [_header(tensors), *map(_bytes_of, tensors.values())]:
            for start in range(0, len(piece), _CHUNK):
                chunk = piece[start : start + _CHUNK]
                write_all(file, chunk)
                digest.update(chunk)
                written += len(chunk)
                if written - settled >= _SETTLE:
                    _settle(file)
                    settled = written
        os.fsync(file.fileno())
    return FileFacts(written, digest.hexdigest())


def _settle(file: BinaryIO) -> None:
    """Put what was written on the disk and give its memory back to the system: the next chunk takes it again, warm.

    Without this a gigabyte takes 2.5 times as long, in the making of new pages, and pushes the tars that training reads
    out of memory.
    """
    os.fdatasync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def file_facts(path: Path) -> FileFacts:
    """Size and digest of what is there now. Raises OSError, as reading does."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        return FileFacts(file.tell(), digest.hexdigest())


class TensorFile:
    """A file of tensors, open for reading.

    Raises:
        OSError: when it cannot be opened.
        ValueError: when it is no file of tensors. Both name it.
    """

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        self._file: BinaryIO = path.open("rb", buffering=0)
        length = int.from_bytes(self._file.read(8), "little")
        try:
            # a damaged length may be any number of 64 bits
            self._entries: dict[str, Any] = json.loads(self._file.read(min(length, size)))
        except ValueError as error:
            self._file.close()
            raise ValueError(f"{path}: no header of tensors ({error})") from None
        self._data_start = 8 + length

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._entries)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """The tensor, or some of its rows: then nothing else is read."""
        entry = self._entries[name]
        shape, (start, stop) = list(entry["shape"]), entry["data_offsets"]
        if rows is not None:
            row_bytes = (stop - start) // max(shape[0], 1)
            start, shape[0] = start + rows.start * row_bytes, rows.stop - rows.start
        tensor = torch.empty(shape, dtype=_DTYPES[entry["dtype"]])
        self._file.seek(self._data_start + start)
        target = _bytes_of(tensor)
        done = 0
        while done < len(target):
            got = self._file.readinto(target[done:])  # type: ignore[attr-defined]  # a raw file has it
            if not got:
                raise ValueError(f"{self._file.name}: {name}: ends {len(target) - done} bytes early")
            done += got
        return tensor


def _header(tensors: Mapping[str, torch.Tensor]) -> memoryview:
    entries, position = {}, 0
    for name, tensor in tensors.items():
        end = position + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return memoryview(len(text).to_bytes(8, "little") + text)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The tensor's own memory; shared, not copied, if it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
