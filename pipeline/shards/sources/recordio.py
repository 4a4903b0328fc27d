"""The RecordIO format of dmlc-core and MXNet's image header in it, read without either.

A record is `magic, lrec, data, padding to 4 bytes`, all little-endian 32-bit words; the upper 3 bits of `lrec` say
whether the data is whole (0) or the first (1), a middle (2) or the last (3) part, the lower 29 are the part's bytes.
Data is split at each magic word in it that lies on a word boundary; the word itself is left out and put back here. So
an aligned magic word is always the start of a part.

An image record's data is `flag, label, id, id2` (u32, f32, u64, u64), then `flag` float32 labels when flag > 0, then
the encoded image.
"""

import os
import struct

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.images import SetAsideError

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
LENGTH_BITS = 29
LENGTH_MASK = (1 << LENGTH_BITS) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)
PART_HEADER, IMAGE_HEADER = struct.Struct("<II"), struct.Struct("<IfQQ")


def read_part(descriptor: int, offset: int) -> tuple[int, bytes]:
    """Kind and data of the part at a byte offset of an open file.

    Raises:
        SetAsideError: no part begins there, or the file ends inside it.
        OSError: the file cannot be read.
    """
    header = os.pread(descriptor, PART_HEADER.size, offset)
    if len(header) < PART_HEADER.size:
        raise SetAsideError(f"truncated: the file ends in the record at byte {offset}")
    magic, lrec = PART_HEADER.unpack(header)
    if magic != MAGIC:
        raise SetAsideError(f"no record at byte {offset}: got {magic:#010x}, wanted {MAGIC:#010x}")
    length = lrec & LENGTH_MASK
    data = os.pread(descriptor, length, offset + PART_HEADER.size)
    if len(data) < length:
        raise SetAsideError(f"truncated: the file ends in the record at byte {offset}")
    return lrec >> LENGTH_BITS, data


def read_record(descriptor: int, offset: int) -> bytes:
    """The data of the record at a byte offset, its parts joined.

    Raises:
        SetAsideError: the record is broken.
        OSError: the file cannot be read.
    """
    kind, data = read_part(descriptor, offset)
    if kind == WHOLE:
        return data
    if kind != FIRST:
        raise SetAsideError(f"no record begins at byte {offset}: got a part of kind {kind}, wanted 0 or 1")
    parts = [data]
    while kind != LAST:
        offset += PART_HEADER.size + len(data) + -len(data) % 4
        kind, data = read_part(descriptor, offset)
        if kind not in {MIDDLE, LAST}:
            raise SetAsideError(f"broken record: got a part of kind {kind} at byte {offset}, wanted 2 or 3")
        parts.append(data)
    return MAGIC_BYTES.join(parts)


def split_image_record(record: bytes) -> tuple[NDArray[np.float32], bytes]:
    """Labels ([1] or [flag]) and encoded image of a record.

    Raises:
        SetAsideError: it is shorter than its header says.
    """
    if len(record) < IMAGE_HEADER.size:
        raise SetAsideError(f"image header: got {len(record)} bytes, wanted {IMAGE_HEADER.size}")
    flag, label, _, _ = IMAGE_HEADER.unpack_from(record)
    start = IMAGE_HEADER.size + 4 * flag
    if start > len(record):
        raise SetAsideError(f"image header: got {flag} labels in {len(record)} bytes")
    if not flag:
        return np.array([label], np.float32), record[start:]
    return np.frombuffer(record, "<f4", flag, IMAGE_HEADER.size), record[start:]


def part_starts(words: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Byte offsets of all records of a file, given as its words, found by their magic; parts 2 and 3 are left out.

    A file without an index is read so; records after a damaged one are found again.
    """
    step = 1 << 24  # words at a time, so that memory stays flat
    found = [np.flatnonzero(words[first : first + step] == MAGIC) + first for first in range(0, len(words) - 1, step)]
    starts = np.concatenate([np.empty(0, np.int64), *found])
    starts = starts[starts < len(words) - 1]
    return starts[(words[starts + 1] >> LENGTH_BITS) <= FIRST] * 4
