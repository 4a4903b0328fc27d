"""Text files of protocols, read line by line: UTF-8, with or without a byte order mark."""

from __future__ import annotations

import io
from pathlib import Path


def read_lines(file: Path) -> list[str]:
    """The lines of a file without their ends.

    Raises ValueError naming a file that cannot be read, or the line that is not UTF-8.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}, line {line}: got byte {error.object[error.start]:#04x}, wanted UTF-8") from None
    # Not splitlines, which also cuts at characters that a file's name may have.
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]
