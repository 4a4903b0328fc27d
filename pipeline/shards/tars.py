"""Plain POSIX tars, written in one pass with headers that depend on name and size alone."""

import hashlib
from typing import BinaryIO

from pipeline.shards.files import write_all
from pipeline.shards.index import Component

BLOCK = 512
# An archive ends with two zero blocks and fills its last record of 20 blocks, as GNU tar and tarfile write it.
RECORD = 20 * BLOCK
# Small writes cost a system call each; a mebibyte amortises it and keeps memory flat.
FLUSH = 1 << 20

# ustar fields in their order (POSIX.1-1988): mode 0644, uid and gid 0 | mtime 0 | a regular file of nobody.
_ZEROS = bytes(BLOCK)
_OWNER = b"0000644\0" + b"0000000\0" * 2
_MTIME = b"00000000000\0"
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
# The checksum is the sum of all bytes, its own eight counted as spaces; name and size are added to this.
_FIXED_SUM = sum(_OWNER) + sum(_MTIME) + sum(_REST) + 8 * ord(" ")


def member_header(name: bytes, size: int) -> bytes:
    """The 512-byte ustar header of a regular file; `name` has at most 99 bytes, `size` is below 8 GiB."""
    digits = b"%011o" % size
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(name) + sum(digits))
    return b"".join((name, _ZEROS[len(name) : 100], _OWNER, digits, b"\0", _MTIME, checksum, _REST))


class TarStream:
    """Appends members to an open file and hashes what it writes.

    `written` is the size of the archive so far, in bytes; `close` ends the archive but not the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.written = 0
        self._file = file
        self._digest = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._flushed = 0

    def add(self, stem: str, extension: str, payload: bytes) -> Component:
        """Append the file `stem.extension` and return where it lies."""
        name = f"{stem}.{extension}"
        size = len(payload)
        offset = self.written + BLOCK
        padding = -size % BLOCK
        self._pieces += (member_header(name.encode(), size), payload, _ZEROS[:padding])
        self.written = offset + size + padding
        if self.written - self._flushed >= FLUSH:
            self._flush()
        return extension, offset, size, name

    def close(self) -> str:
        """End the archive and return the SHA-256 of all its bytes."""
        end = bytes(2 * BLOCK + -(self.written + 2 * BLOCK) % RECORD)
        self._pieces.append(end)
        self.written += len(end)
        self._flush()
        return self._digest.hexdigest()

    def _flush(self) -> None:
        block = b"".join(self._pieces)
        self._digest.update(block)
        write_all(self._file, block)
        self._pieces.clear()
        self._flushed = self.written
