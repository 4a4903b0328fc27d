"""The members of any tar by `tarfile`, and the samples that they are.

It is thirty times slower than `tar_headers`, and reads the tars that are not plain, and every tar of `verify`.
"""

import os
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import BinaryIO, NamedTuple

from pipeline.shards.images import SetAsideError

IMAGES = ("jpg", "jpeg", "png")
DIGITS = 18  # so many of a label fit 64 bits


class Member(NamedTuple):
    """A regular file of a tar: name split at the first dot of its last part, place and size of the payload."""

    stem: str
    extension: str
    offset: int
    size: int


NOTHING = Member("", "", 0, 0)


class TarSample(NamedTuple):
    """One sample of a tar; places and sizes in bytes, size 0 and label -1 if there is none."""

    stem: str
    label: int
    image: int
    image_size: int
    json: int
    json_size: int


def samples_of(file: BinaryIO, members: Iterable[Member]) -> Iterator[TarSample]:
    """Group members of an open tar by stem; a sample that is not whole has label -1."""
    size = os.fstat(file.fileno()).st_size
    for stem, group in groupby(members, key=lambda member: member.stem):
        parts = {member.extension.lower(): member for member in group}
        image = next((parts[extension] for extension in IMAGES if extension in parts), NOTHING)
        text = parts.get("json", NOTHING)
        whole = image.size and image.offset + image.size <= size and "cls" in parts
        label = _number(file, parts["cls"]) if whole else -1
        yield TarSample(stem, label, image.offset, image.size, text.offset, text.size)


def walk(file: BinaryIO) -> Iterator[Member]:
    """Regular files of a tar by its headers.

    Raises:
        SetAsideError: the tar is damaged; what came before is good.
    """
    try:
        # "r:" since in a compressed tar no payload lies at its offset.
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.isreg():
                    yield Member(*split_name(info.name), info.offset_data, info.size)
                tar.members.clear()  # type: ignore[attr-defined]  # else memory grows with every member
    except tarfile.TarError as error:
        raise SetAsideError(f"damaged: {error}; the rest of the tar is left out") from error


def split_name(name: str) -> tuple[str, str]:
    """A member's name at the first dot of its last part, as WebDataset splits it."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def _number(file: BinaryIO, member: Member) -> int:
    """The number that a member holds, or -1 if it holds anything else or is cut."""
    text = os.pread(file.fileno(), member.size, member.offset)
    return int(text) if len(text) == member.size <= DIGITS and text.isdigit() else -1
