"""A folder of WebDataset tars, to be sharded again: other sizes, another order, or from another tool.

A sample is the members of one stem: an image (`.jpg`, `.jpeg` or `.png`), its label (`.cls`, a number) and perhaps
`.json` with a `key`. Names of identities come from `identities.txt` when it is there.
"""

import hashlib
import json
import mmap
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.errors import SetAsideError, ShardError
from pipeline.shards.sources import SetAside
from pipeline.shards.sources.list_file import number_names
from pipeline.shards.tars import BLOCK
from pipeline.shards.workers import each_done

IMAGES = ("jpg", "jpeg", "png")
# Where the payloads of a sample lie; sizes in bytes, 0 where there is no JSON.
PLACE = np.dtype([("tar", "<u4"), ("image", "<u8"), ("image_size", "<u4"), ("json", "<u8"), ("json_size", "<u4")])


class Member(NamedTuple):
    """A regular file of a tar: name split at the first dot of its last part, place and size of the payload."""

    stem: str
    extension: str
    offset: int
    size: int


NOTHING = Member("", "", 0, 0)


class TarSample(NamedTuple):
    """One sample of a tar; places and sizes in bytes, sizes 0 and label -1 where there is none."""

    stem: str
    label: int
    image: int
    image_size: int
    json: int
    json_size: int


@dataclass(frozen=True)
class TarSource:
    """Samples of a folder's tars, in the order of the tars' names and then of their members."""

    folder: Path
    tars: Sequence[str]
    identities: Sequence[str]
    labels: NDArray[np.uint32]
    set_aside: Sequence[SetAside]
    places: NDArray[np.void]
    kind: str = "tars"

    def digest(self) -> str:
        """SHA-256 of identities, labels, tars and places."""
        digest = hashlib.sha256("\n".join([*self.identities, "", *self.tars]).encode())
        digest.update(self.labels.tobytes())
        digest.update(self.places.tobytes())
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """The `key` of the sample's JSON, or the tar and the place in it."""
        return self._read(sample)[0]

    def read(self, sample: int) -> bytes:
        """The encoded image."""
        image = self._read(sample)[1]
        if isinstance(image, SetAsideError):
            raise image
        return image

    def read_many(self, samples: NDArray[np.int64]) -> Iterator[tuple[str, bytes | SetAsideError]]:
        """Key and image of samples, each from its tar opened once."""
        return map(self._read, samples.tolist())

    def _read(self, sample: int) -> tuple[str, bytes | SetAsideError]:
        tar, image, image_size, text, text_size = self.places[sample].tolist()
        path = f"{self.folder}/{self.tars[tar]}"
        try:
            # Opened each time: a set has more tars than a process may have open files.
            descriptor = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(descriptor, image_size, image)
                key = _key(os.pread(descriptor, text_size, text)) or f"{self.tars[tar]}:{image}"
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}") from error
        return key, data if len(data) == image_size else SetAsideError("truncated: the tar ends in it")


def open_tars(folder: Path, *, workers: int = 1) -> TarSource:
    """List the samples of a folder's tars by their headers, in so many processes.

    Raises:
        ShardError: no tar, no labelled image in any, or a label outside `identities.txt`.
    """
    tars = sorted(path.name for path in folder.glob("*.tar"))
    listings = sorted(each_done(partial(_list_tar, folder, tars), range(len(tars)), workers), key=lambda one: one.tar)
    set_aside = [fault for listing in listings for fault in listing.set_aside]
    labels = np.concatenate([np.empty(0, np.int64), *(listing.labels for listing in listings)])
    if not len(labels):
        raise ShardError(f"{folder}: got {len(tars)} tars without labelled images, wanted .jpg or .png with .cls")
    numbers, dense = np.unique(labels, return_inverse=True)
    places = np.concatenate([listing.places for listing in listings])
    return TarSource(folder, tars, _names(folder, numbers), dense.astype(np.uint32), set_aside, places)


class _Listing(NamedTuple):
    """Samples of one tar: numbers in `.cls` and places, both [samples]."""

    tar: int
    labels: NDArray[np.int64]
    places: NDArray[np.void]
    set_aside: list[SetAside]


def _list_tar(folder: Path, tars: Sequence[str], number: int) -> _Listing:
    path = folder / tars[number]
    set_aside: list[SetAside] = []
    labels: list[int] = []
    rows: list[tuple[int, ...]] = []
    with path.open("rb") as file:
        for sample in samples_of(file, _members(path, file, set_aside)):
            if sample.label < 0:
                set_aside.append(SetAside(f"{path.name}:{sample.stem}", "wanted a whole image and a number as .cls"))
            else:
                rows.append((number, *sample[2:]))
                labels.append(sample.label)
    return _Listing(number, np.array(labels, np.int64), np.array(rows, PLACE), set_aside)


def keys_of(tar: Path, offsets: Sequence[int]) -> list[str]:
    """Keys of the samples whose images lie at these offsets of a tar: from their JSON, or else their place."""
    with tar.open("rb") as file:
        samples = {sample.image: sample for sample in samples_of(file, _members(tar, file, []))}
        return [
            _key(os.pread(file.fileno(), samples[offset].json_size, samples[offset].json)) or f"{tar.name}:{offset}"
            for offset in offsets
        ]


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
        with tarfile.open(fileobj=file) as tar:
            for info in tar:
                if info.isreg():
                    yield Member(*_split(info.name), info.offset_data, info.size)
                tar.members.clear()  # type: ignore[attr-defined]  # else memory grows with every member
    except tarfile.TarError as error:
        raise SetAsideError(f"damaged: {error}; the rest of the tar is left out") from error


def _members(path: Path, file: BinaryIO, set_aside: list[SetAside]) -> Iterator[Member]:
    """Members from the DALI index beside the tar when there is one (ten times faster), else by walking."""
    index = path.with_suffix(".idx")
    try:
        yield from _indexed_members(index, file) if index.is_file() else walk(file)
    except SetAsideError as error:
        set_aside.append(SetAside(path.name, str(error)))


def _indexed_members(index: Path, file: BinaryIO) -> Iterator[Member]:
    lines = index.read_text().splitlines()
    # Mapped, since a call of the system for each of three members would be half of the time.
    tar = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""
    for line in lines[1:]:
        words = line.split(" ")
        for extension, offset, size, name in zip(words[::4], words[1::4], words[2::4], words[3::4], strict=True):
            start = int(offset)
            header = tar[start - BLOCK : start - BLOCK + len(name)]
            if header != name.encode():
                raise ShardError(f"{index}: got {name} where the tar has {header!r}; remove the index or make it anew")
            yield Member(name.removesuffix(f".{extension}"), extension, start, int(size))


def _split(name: str) -> tuple[str, str]:
    """A member's name at the first dot of its last part, as WebDataset splits it."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def _key(text: bytes) -> str:
    """The `key` in a sample's JSON; empty when there is none."""
    try:
        return str(json.loads(text)["key"])
    except (ValueError, KeyError, TypeError):
        return ""


def _number(file: BinaryIO, member: Member) -> int:
    """The number that a member holds, or -1 when it holds something else or is cut."""
    text = os.pread(file.fileno(), member.size, member.offset)
    return int(text) if len(text) == member.size < 20 and text.isdigit() else -1


def _names(folder: Path, numbers: NDArray[np.int64]) -> list[str]:
    path = folder / "identities.txt"
    if not path.is_file():
        return number_names(numbers)
    names = path.read_text().split("\n")[:-1]
    if numbers[-1] >= len(names):
        raise ShardError(f"{path}: got {len(names)} names, wanted one for label {numbers[-1]}")
    return [names[number] for number in numbers.tolist()]
