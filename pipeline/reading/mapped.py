"""A file as an array of bytes, memory-mapped without keeping a file descriptor."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes [size] of a file that is not empty, read-only; unmapped when no array refers to them any more.

    Python's own `mmap` keeps a descriptor for as long as the map lives (before 3.13, without a choice), and a process
    commonly has 1,024: as many tars as a batch of many streams touches. The kernel allows 65,530 maps.

    Raises:
        OSError: when it cannot be opened or mapped.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"mmap: {os.strerror(number)}", str(path))
    memory = (ctypes.c_uint8 * size).from_address(address)
    # Not at exit: DALI's threads may still read then, and the kernel unmaps everything anyway.
    weakref.finalize(memory, _libc.munmap, address, size).atexit = False
    content: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
    content.flags.writeable = False  # a write would end the process
    return content
