"""`rejected.tsv`: what of a source is not in a set, and why."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

REJECTED_NAME = "rejected.tsv"
LEFT_EMPTY = "identity left empty"

# Characters that would break a line, or a column of a table.
ESCAPES = {ord(character): repr(character)[1:-1] for character in "\t\r\n"}


class SetAside(NamedTuple):
    """One source file that is not in the shards, why, and how many samples are lost by it as far as is known."""

    path: str
    reason: str
    samples: int = 1


def read_rejected(folder: Path) -> list[SetAside]:
    """What a set's `rejected.tsv` lists; one that is missing lists nothing."""
    path = folder / REJECTED_NAME
    text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    listed = []
    for line in text.split("\n")[1:-1]:
        name, _, reason = line.partition("\t")
        listed.append(SetAside(name, reason, 0 if reason == LEFT_EMPTY else 1))
    return listed


def rejected_table(set_aside: Sequence[SetAside]) -> bytes:
    """`rejected.tsv`: path and reason, sorted, one file a line whatever its name holds."""
    lines = (f"{one.path.translate(ESCAPES)}\t{one.reason}\n" for one in sorted(set_aside))
    # A path that is not UTF-8 shows the bytes that are not as \udc80 and so on.
    return "".join(["path\treason\n", *lines]).encode("utf-8", "backslashreplace")
