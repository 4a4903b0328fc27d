"""The members of any tar by `tarfile`, and the samples that they are.

It is thirty times slower than `tar_headers`, and reads the tars that are not plain, and every tar of `verify`.
"""

import os
import tarfile
from collections.abc import Collection, Generator, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from pipeline.shards.format.tars import BLOCK
from pipeline.shards.images import SUFFIXES, SetAsideError

KINDS = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)  # of images
DIGITS = 18  # so many of a label fit 64 bits
SPACE = b" \t\r\n"  # may stand behind a label
LONGEST_LABEL = DIGITS + 2
LONGEST_TEXT = 1 << 20  # of a member that holds a name, in bytes
NO_LABEL, NOT_A_NUMBER = -1, -2

# Files beside each file that macOS packs (AppleDouble), and their folder in archives.
APPLE = ("._", "__MACOSX")

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A regular file of a tar: name split at the first dot of its last part, place and size of the payload."""

    stem: str
    extension: str
    offset: int
    size: int


NOTHING = Member("", "", 0, 0)


class Layout(NamedTuple):
    """What the members of a sample are called: extensions in lower case; of several images the first of these counts.

    `field` is that of the JSON that is the label, if the JSON holds it. `is_number` says that labels are numbers, as
    WebDataset means `.cls`; else they are names.
    """

    images: tuple[str, ...] = KINDS
    label: str = "cls"
    json: str = "json"
    field: str = ""
    is_number: bool = True

    def is_whole(self, extensions: Collection[str]) -> bool:
        """Whether members of these extensions are a sample."""
        return self.label in extensions and any(image in extensions for image in self.images)

    def is_known(self, extension: str) -> bool:
        """Whether a member is part of a sample."""
        return extension in (self.label, self.json) or extension in self.images


WEBDATASET = Layout()


class TarSample(NamedTuple):
    """One sample of a tar; places and sizes in bytes, 0 if there is none.

    The label is `NO_LABEL` if no member holds one and `NOT_A_NUMBER` if that holds anything else; `text` is its place.
    """

    stem: str
    label: int
    image: int
    image_size: int
    json: int
    json_size: int
    text: int
    text_size: int


class DamagedError(SetAsideError):
    """A tar is damaged at the byte `at`; what came before is good."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


def samples_of(file: BinaryIO, members: Iterable[Member], layout: Layout = WEBDATASET) -> Iterator[TarSample]:
    """Group members of an open tar to samples.

    A sample is a run of members of one stem with each kind of file once, so that tars put end to end may repeat names.
    Runs that have an image or a label only are joined if they have one stem: some tools write all images first.
    """
    groups = list(_runs(members, layout))
    open_group: dict[str, dict[str, Member]] = {}
    for place, (stem, parts) in enumerate(groups):
        if layout.is_whole(parts):
            continue
        there = open_group.setdefault(stem, parts)
        if there is not parts and not any(map(layout.is_known, there.keys() & parts.keys())):
            there.update(parts)
            groups[place] = stem, {}
            if layout.is_whole(there):
                del open_group[stem]
    size = os.fstat(file.fileno()).st_size
    for stem, parts in groups:
        if parts:
            yield _sample(file, size, stem, parts, layout)


def _runs(members: Iterable[Member], layout: Layout) -> Iterator[tuple[str, dict[str, Member]]]:
    """Stem and members by extension of each run."""
    stem, parts = "", dict[str, Member]()
    for member in members:
        extension = member.extension.lower()
        if parts and (member.stem != stem or (extension in parts and layout.is_known(extension))):
            yield stem, parts
            parts = {}
        stem = member.stem
        parts[extension] = member
    if parts:
        yield stem, parts


def _sample(file: BinaryIO, size: int, stem: str, parts: dict[str, Member], layout: Layout) -> TarSample:
    image = next((parts[extension] for extension in layout.images if extension in parts), NOTHING)
    if image.offset + image.size > size:  # cut
        image = NOTHING
    note, text = parts.get(layout.json, NOTHING), parts.get(layout.label, NOTHING)
    label = _number(file, text) if layout.label in parts else NO_LABEL
    place = image.offset if image.size else 0
    return TarSample(stem, label, place, image.size, note.offset, note.size, text.offset, text.size)


def walk(file: BinaryIO) -> Iterator[Member]:
    """Regular files of a tar, or of several tars put end to end, by their headers.

    Raises:
        DamagedError: the tar is damaged, cut or compressed; what came before is good.
    """
    if compression := compression_of(file):
        raise DamagedError(f"compressed with {compression}: wanted a plain tar; decompress it first", 0)
    size = os.fstat(file.fileno()).st_size
    at = 0
    while at < size:
        at = yield from _walk_one(file, at)
        rest = _after_zeros(file, at)
        if rest == at and at < size:
            raise DamagedError(f"damaged: no header at byte {at} of {size}", at)
        if rest == at and at:
            raise DamagedError("cut: it ends without the zeros that close a tar", at)
        at = rest
    if not size:
        raise DamagedError("damaged: empty file", 0)


def compression_of(file: BinaryIO) -> str:
    """What an open file is compressed with; empty if it is not."""
    start = os.pread(file.fileno(), max(map(len, COMPRESSED)), 0)
    return next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), "")


def walk_far(file: BinaryIO) -> tuple[list[Member], DamagedError | None]:
    """What `walk` gives up to the tar's damage, and that; None: it is whole."""
    members: list[Member] = []
    try:
        members.extend(walk(file))
    except DamagedError as error:
        return members, error
    return members, None


def _walk_one(file: BinaryIO, at: int) -> Generator[Member, None, int]:
    """Members of the tar that begins at a byte; returns where the next header was expected."""
    file.seek(at)
    try:
        # "r:" since in a compressed tar no payload lies at its offset.
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                at = info.offset
                if info.size < 0:  # Python before CVE-2025-8194 was mended goes back there for ever
                    raise DamagedError(f"damaged: a file of {info.size} bytes", at)
                if info.isreg() and not info.issparse() and not is_apple(info.name):
                    yield Member(*split_name(info.name), info.offset_data, info.size)
                tar.members.clear()  # type: ignore[attr-defined]  # else memory grows with every member
            return tar.offset
    except tarfile.TarError as error:
        raise DamagedError(f"damaged: {error}", at) from error


def _after_zeros(file: BinaryIO, at: int) -> int:
    """The first block from `at` on that is not zeros, or the end of the file."""
    file.seek(at)
    while data := file.read(BLOCK << 8):
        if rest := data.lstrip(b"\0"):
            return at + (len(data) - len(rest)) // BLOCK * BLOCK
        at += len(data)
    return at


def is_apple(name: str) -> bool:
    """Whether a member is one of macOS's files beside files."""
    return name.rpartition("/")[2].startswith(APPLE[0]) or name.startswith(APPLE[1] + "/")


def split_name(name: str) -> tuple[str, str]:
    """A member's name at the first dot of its last part, as WebDataset splits it."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def _number(file: BinaryIO, member: Member) -> int:
    """The number that a member holds."""
    data = os.pread(file.fileno(), min(member.size, LONGEST_LABEL + 1), member.offset)
    text = data.rstrip(SPACE)
    is_whole = len(data) == member.size <= LONGEST_LABEL
    return int(text) if is_whole and len(text) <= DIGITS and text.isdigit() else NOT_A_NUMBER
