"""Archives of identity folders: the images of tars and zips, each of the person whose folder it lies in.

Or of the person whose archive it is, if a tar holds the images of one person.
"""

import hashlib
import os
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.files import named
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.names import UNUSABLE, usable_name
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.images import LARGEST_IMAGE, NO_SUFFIX, SUFFIXES, SetAsideError, check_bytes
from pipeline.shards.sources import OneByOne, changed_at
from pipeline.shards.sources.files import Texts
from pipeline.shards.sources.folder import lost_by
from pipeline.shards.sources.labels import sorted_identities
from pipeline.shards.sources.loss import summary
from pipeline.shards.sources.splits import EVERYTHING, Choice, choose, matching
from pipeline.shards.sources.tar_files import TARS, TarFiles
from pipeline.shards.sources.tar_walk import DamagedError, is_apple, walk

ZIP = "*.zip"
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
# The local header before each file of a zip (APPNOTE 4.3.7): its end has the lengths of name and extra field.
ZIP_HEADER = struct.Struct("<4s22xHH")

PLACE = np.dtype([("archive", "<u4"), ("at", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("deflated", "?")])
ROW = struct.Struct("<IQQI?")


class Packed(NamedTuple):
    """A file in an archive: its name, its bytes there, and of a zip their checksum and whether they are deflated."""

    name: str
    at: int
    size: int
    crc: int = 0
    deflated: bool = False


@dataclass(frozen=True)
class ArchiveSource(OneByOne):
    """Images of archives, in the order of the archives' names and then of their members."""

    archives: Sequence[Path]
    identities: Sequence[str]
    labels: NDArray[np.uint32]
    set_aside: Sequence[SetAside]
    paths: Texts
    places: NDArray[np.void]
    kind: str = "archive"
    sequential: bool = False

    def digest(self) -> str:
        """SHA-256 of identities, labels, keys, and places in the archives."""
        digest = hashlib.sha256("\n".join(self.identities).encode())
        for column in (self.labels, self.paths.ends, self.places):
            digest.update(column.tobytes())
        digest.update(os.fsencode(self.paths.joined))
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """The path in the archive, behind the person's name if that is the archive's."""
        return self.paths[sample]

    def modified(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """[samples] when the archive of each was last changed."""
        return np.array(list(map(changed_at, self.archives)))[self.places["archive"][samples]]

    def read(self, sample: int) -> bytes:
        """The encoded image; one that is cut or damaged is set aside."""
        archive, at, size, crc, deflated = self.places[sample].tolist()
        check_bytes(size)
        path = self.archives[archive]
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(descriptor, size, at)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}") from error
        if len(data) < size:
            raise SetAsideError("truncated: the archive ends in it")
        return _inflated(data, crc) if deflated else _checked(data, crc)


def _inflated(data: bytes, crc: int) -> bytes:
    try:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        image = inflater.decompress(data, LARGEST_IMAGE + 1)
        check_bytes(len(image))
        if not inflater.eof:
            raise SetAsideError("damaged in the archive: it ends too early")
        return _checked(image, crc)
    except zlib.error as error:
        raise SetAsideError(f"damaged in the archive: {error}") from error


def _checked(data: bytes, crc: int) -> bytes:
    """The bytes if they have the checksum; a tar has none."""
    if crc and zlib.crc32(data) != crc:
        raise SetAsideError("damaged in the archive: its checksum is of other bytes")
    return data


def open_zips(place: Path, choice: Choice = EVERYTHING) -> ArchiveSource:
    """List the images of identity folders in a zip, or in all zips of a folder.

    Raises:
        ShardError: as `open_archives`, or there is no zip of this name.
        NotWrittenError: a zip cannot be read.
    """
    if place.is_file():
        return open_archives(place.parent, [place.name], [place], choice)
    names = matching(sorted(path.name for path in place.glob(ZIP)), choice.pattern, str(place))
    return open_archives(place, names, [place / name for name in names], choice)


def open_person_tars(tars: TarFiles, choice: Choice, *, by_folder: bool) -> ArchiveSource:
    """List the images of tars of identity folders; or, not `by_folder`, of tars that hold one person each.

    Raises:
        ShardError: as `open_archives`.
    """
    people = None if by_folder else [_person_of(name) for name in tars.names]
    paths = [tars.path(number) for number in range(len(tars.names))]
    return open_archives(tars.folder, tars.names, paths, choice, people)


def _person_of(tar: str) -> str:
    """The name of a tar without its ending."""
    name = PurePosixPath(tar).name
    return next((name.removesuffix(end[1:]) for end in TARS if name.endswith(end[1:])), name)


def open_archives(
    folder: Path, names: Sequence[str], archives: Sequence[Path], choice: Choice, people: Sequence[str] | None = None
) -> ArchiveSource:
    """List the images in archives.

    Args:
        folder: where they are, for messages.
        names: what they are called there.
        archives: tars and zips.
        choice: of splits, which archives may be, or folders in them above the identity folders.
        people: the identity of all images of each archive; None: the folder that an image lies in.

    Raises:
        ShardError: no image in an identity folder, or several splits and none chosen.
        NotWrittenError: an archive cannot be read.
    """
    found = _Found()
    for number, (name, archive) in enumerate(zip(names, archives, strict=True)):
        for packed in _images(name, archive, found.set_aside):
            found.take(name, number, packed, people[number] if people else None)
    if not found.lengths:
        reasons = summary(found.set_aside)
        raise ShardError(f"{folder}: got no image in {', '.join(names)}, wanted identity/image; {reasons}")
    return found.source(archives, choice, str(folder))


class _Found:
    """Images of archives, by columns, while they are listed."""

    def __init__(self) -> None:
        self.set_aside: list[SetAside] = []
        self.paths, self.lengths = bytearray(), array("q")
        self.people: dict[str, int] = {}
        self.person_of = array("q")
        self.places: dict[str, int] = {}  # archive and folders above the identity folder
        self.place_of = array("q")
        self.rows = bytearray()  # of `PLACE`

    def take(self, archive: str, number: int, packed: Packed, person: str | None) -> None:
        """Add an image; one without a usable identity is set aside."""
        folder = PurePosixPath(packed.name).parent
        own = folder.name if person is None else person
        identity = usable_name(own)
        if identity is None:
            self.set_aside.append(SetAside(packed.name, UNUSABLE if own else "not in an identity folder"))
            return
        above = f"{archive}/{folder.parent}" if person is None else archive
        self.person_of.append(self.people.setdefault(identity, len(self.people)))
        self.place_of.append(self.places.setdefault(above, len(self.places)))
        path = packed.name if person is None else f"{identity}/{packed.name}"
        self.paths += path.encode("utf-8", "surrogateescape")
        self.lengths.append(len(path))
        self.rows += ROW.pack(number, *packed[1:])

    def source(self, archives: Sequence[Path], choice: Choice, where: str) -> ArchiveSource:
        """The images of the chosen splits."""
        wanted = set(choose(list(self.places), choice._replace(pattern="*"), where))
        is_wanted = np.array([place in wanted for place in self.places])
        kept = np.flatnonzero(is_wanted[np.asarray(self.place_of)])
        paths = _texts(self.paths.decode("utf-8", "surrogateescape"), self.lengths)
        if len(kept) < len(self.lengths):
            chosen = paths.some(kept)
            paths = _texts("".join(chosen), list(map(len, chosen)))
        there, dense = np.unique(np.asarray(self.person_of)[kept], return_inverse=True)
        names = list(self.people)
        identities, rank = sorted_identities([names[number] for number in there.tolist()])
        places = np.frombuffer(self.rows, PLACE)[kept]
        return ArchiveSource(archives, identities, rank[dense], self.set_aside, paths, places)


def _texts(joined: str, lengths: Sequence[int]) -> Texts:
    return Texts(joined, np.cumsum(lengths, dtype=np.int64))


def _images(name: str, archive: Path, set_aside: list[SetAside]) -> Iterator[Packed]:
    """Images of an archive; what else it holds, and damage, is set aside."""
    files = _zipped(archive, set_aside) if archive.match(ZIP) else _tarred(name, archive, set_aside)
    for packed in files:
        parts = PurePosixPath(packed.name).parts
        if is_apple(packed.name) or any(part.startswith(".") for part in parts):
            continue
        if not packed.name.lower().endswith(SUFFIXES):
            set_aside.append(SetAside(packed.name, NO_SUFFIX, lost_by(parts[-1])))
        else:
            yield packed


def _tarred(name: str, archive: Path, set_aside: list[SetAside]) -> Iterator[Packed]:
    """Files of a plain tar; what lies behind damage counts as many samples as would fill it."""
    files = 0
    with named(archive, "not read"), archive.open("rb") as file:
        try:
            for stem, extension, at, size in walk(file):
                files += 1
                yield Packed(f"{stem}.{extension}" if extension else stem, at, size)
        except DamagedError as error:
            unread = archive.stat().st_size - error.at
            set_aside.append(SetAside(name, str(error), max(1, round(unread * files / max(1, error.at)))))


def _zipped(archive: Path, set_aside: list[SetAside]) -> Iterator[Packed]:
    """Files of a zip that are stored or deflated."""
    with named(archive, "not read"), archive.open("rb") as file:
        try:
            listed = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, NotImplementedError) as error:  # of a later version of the format
            raise ShardError(f"{archive}: not a whole zip: {error}") from error
        for info in listed:
            if info.is_dir():
                continue
            header = os.pread(file.fileno(), ZIP_HEADER.size, info.header_offset)
            reason = _why_not(info, header)
            if reason:
                set_aside.append(SetAside(info.filename, reason))
                continue
            _, name_size, extra_size = ZIP_HEADER.unpack(header)
            at = info.header_offset + ZIP_HEADER.size + name_size + extra_size
            yield Packed(info.filename, at, info.compress_size, info.CRC, info.compress_type == DEFLATED)


def _why_not(info: zipfile.ZipInfo, header: bytes) -> str:
    """Why a file of a zip cannot be read; empty if it can."""
    if not header.startswith(b"PK\3\4") or len(header) < ZIP_HEADER.size:
        return "damaged: no header where the zip says"
    if info.flag_bits & 1:
        return "encrypted"
    if info.compress_type not in {STORED, DEFLATED}:
        return f"compressed with method {info.compress_type}: wanted stored or deflated"
    return ""
