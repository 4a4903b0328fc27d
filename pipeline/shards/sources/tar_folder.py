"""A folder of WebDataset tars, to be sharded again: other sizes, another order, or from another tool.

A sample is the members of one stem: an image (`.jpg`, `.jpeg` or `.png`), its label (`.cls`, a number) and perhaps
`.json` with a `key`. Names of identities come from `identities.txt` if it is there.
"""

import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.files import named
from pipeline.shards.fields import of_json
from pipeline.shards.images import SetAsideError
from pipeline.shards.loss import summary
from pipeline.shards.manifest import ShardError
from pipeline.shards.names import IDENTITIES_NAME, UNUSABLE, usable_name, warn_respelled
from pipeline.shards.sources import Read, SetAside, changed_at
from pipeline.shards.sources.list_file import number_names
from pipeline.shards.sources.splits import EVERYTHING, Choice, choose
from pipeline.shards.sources.tar_headers import SAMPLE, name_at, plain_samples
from pipeline.shards.sources.tar_walk import NO_LABEL, DamagedError, Member, samples_of, split_name, walk
from pipeline.shards.workers import each_done

# Offsets and sizes of the payloads of a sample, in bytes; 0 if there is no JSON.
PLACE = np.dtype([("tar", "<u4"), ("image", "<u8"), ("image_size", "<u4"), ("json", "<u8"), ("json_size", "<u4")])


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
    sequential: bool = False

    def digest(self) -> str:
        """SHA-256 of identities, labels, tars and places."""
        digest = hashlib.sha256("\n".join([*self.identities, "", *self.tars]).encode())
        digest.update(self.labels.tobytes())
        digest.update(self.places.tobytes())
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """The `key` of the sample's JSON, or the tar and the place in it."""
        return self._read(sample).key

    def modified(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """[samples] when the tar of each was last changed."""
        return np.array([changed_at(self.folder / tar) for tar in self.tars])[self.places["tar"][samples]]

    def read(self, sample: int) -> bytes:
        """The encoded image."""
        image = self._read(sample).image
        if isinstance(image, SetAsideError):
            raise image
        return image

    def read_many(self, samples: NDArray[np.int64]) -> Iterator[Read]:
        """Samples, each from its tar opened once."""
        return map(self._read, samples.tolist())

    def _read(self, sample: int) -> Read:
        tar, image, image_size, text, text_size = self.places[sample].tolist()
        path = f"{self.folder}/{self.tars[tar]}"
        try:
            # Opened each time: a set has more tars than a process may have open files.
            descriptor = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(descriptor, image_size, image)
                fields = of_json(os.pread(descriptor, text_size, text))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}") from error
        key = str(fields.get("key") or f"{self.tars[tar]}:{image}")
        return Read(key, data if len(data) == image_size else SetAsideError("truncated: the tar ends in it"), fields)


def open_tars(place: Path, choice: Choice = EVERYTHING, workers: int = 1) -> TarSource:
    """List the samples of one tar, or of all tars of a folder, by their headers in `workers` processes.

    Raises:
        ShardError: no tar, no labelled image in any, or a label outside `identities.txt`.
    """
    folder = place if place.is_dir() else place.parent
    tars = sorted(path.name for path in folder.glob("*.tar")) if place.is_dir() else [place.name]
    tars = choose(tars, choice, str(place))
    listings = sorted(each_done(partial(_list_tar, folder, tars), range(len(tars)), workers), key=lambda one: one.tar)
    labels = np.concatenate([np.empty(0, np.int64), *(listing.labels for listing in listings)])
    set_aside = list(_set_aside(folder, tars, listings))
    if not len(labels):
        wanted = "wanted .jpg or .png with .cls"
        raise ShardError(f"{place}: got {len(tars)} tars without labelled images, {wanted}; {summary(set_aside)}")
    places = np.concatenate([listing.places for listing in listings])
    numbers, dense = np.unique(labels, return_inverse=True)
    names = _names(folder, numbers)
    usable = np.array([name is not None for name in names])
    for number, samples in zip(numbers[~usable].tolist(), np.bincount(dense)[~usable].tolist(), strict=True):
        set_aside.append(SetAside(f"{IDENTITIES_NAME}:{number + 1}", UNUSABLE, samples))
    kept = usable[dense]
    rank = np.cumsum(usable, dtype=np.uint32) - 1
    identities = [name for name in names if name is not None]
    return TarSource(folder, tars, identities, rank[dense[kept]], set_aside, places[kept])


class _Listing(NamedTuple):
    """Samples of one tar: numbers in `.cls` and places, both [samples]; and what is wrong with it."""

    tar: int
    labels: NDArray[np.int64]
    places: NDArray[np.void]
    set_aside: list[SetAside]
    damage: str
    read: int  # bytes up to the damage, or all


def _set_aside(folder: Path, tars: Sequence[str], listings: Sequence[_Listing]) -> Iterator[SetAside]:
    """All that was set aside; a damaged tar counts as many samples as fill what could not be read of it."""
    samples = sum(len(listing.labels) for listing in listings)
    mean = sum(listing.read for listing in listings) / max(1, samples)
    for listing in listings:
        yield from listing.set_aside
        if listing.damage:
            unread = (folder / tars[listing.tar]).stat().st_size - listing.read
            yield SetAside(tars[listing.tar], listing.damage, max(1, round(unread / max(1, mean))))


def _list_tar(folder: Path, tars: Sequence[str], number: int) -> _Listing:
    path = folder / tars[number]
    with named(path, "not read"):
        samples, stems, damage = _samples(path)
        read = damage.at if damage else path.stat().st_size
    good = (samples["label"] >= 0) & (samples["image_size"] > 0)
    faults = zip(stems, samples[~good], strict=True)
    set_aside = [_fault(f"{path.name}:{stem}", sample) for stem, sample in faults]
    samples = samples[good]
    places = np.empty(len(samples), PLACE)
    places["tar"] = number
    for field in ("image", "image_size", "json", "json_size"):
        places[field] = samples[field]
    return _Listing(number, samples["label"].copy(), places, set_aside, str(damage or ""), read)


def _fault(name: str, sample: np.void) -> SetAside:
    """Why a group of members is no sample."""
    if sample["label"] == NO_LABEL and not sample["image_size"]:
        return SetAside(name, "neither image nor label: wanted .jpg or .png, and .cls", 0)
    if not sample["image_size"]:
        return SetAside(name, "no whole image: wanted .jpg or .png")
    return SetAside(name, "no label: wanted .cls" if sample["label"] == NO_LABEL else "label: wanted a number in .cls")


def texts_of(tar: Path, images: Sequence[int]) -> list[tuple[int, int]]:
    """Offset and size of the JSON of the samples whose images lie at these offsets of a tar; 0 where there is none.

    Raises:
        NotWrittenError: the tar cannot be read.
    """
    with named(tar, "not read"):
        samples, _, _ = _samples(tar)
    text_of = {image: (text, size) for image, text, size in samples[["image", "json", "json_size"]].tolist()}
    return [text_of.get(image, (0, 0)) for image in images]


def keys_of(tar: Path, images: Sequence[int]) -> list[str]:
    """Keys of the samples whose images lie at these offsets of a tar: from their JSON, or else their place.

    Raises:
        NotWrittenError: the tar cannot be read.
    """
    keys = []
    with named(tar, "not read"), tar.open("rb") as file:
        for image, (text, size) in zip(images, texts_of(tar, images), strict=True):
            keys.append(str(of_json(os.pread(file.fileno(), size, text)).get("key") or f"{tar.name}:{image}"))
    return keys


def _samples(path: Path) -> tuple[NDArray[np.void], list[str], DamagedError | None]:
    """[groups] of `SAMPLE`, the stems of those that are no whole samples, and damage that ended the reading."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size:  # nothing cannot be mapped
            tar = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if (samples := plain_samples(tar)) is not None:
                bad = (samples["label"] < 0) | (samples["image_size"] == 0)
                stems = [split_name(name_at(tar, header))[0] for header in samples["header"][bad].tolist()]
                return samples, stems, None
        members: list[Member] = []
        damage: DamagedError | None = None
        try:
            members.extend(walk(file))
        except DamagedError as error:
            damage = error
        walked = list(samples_of(file, members))
    stems = [sample.stem for sample in walked if sample.label < 0 or not sample.image_size]
    return np.array([(0, *sample[1:]) for sample in walked], SAMPLE), stems, damage


def _names(folder: Path, numbers: NDArray[np.int64]) -> list[str | None]:
    """The name of each label, None for one that cannot be used."""
    path = folder / IDENTITIES_NAME
    if not path.is_file():
        return [*number_names(numbers)]
    names = path.read_bytes().decode(errors="surrogateescape").removesuffix("\n").split("\n")
    if numbers[-1] >= len(names):
        raise ShardError(f"{path}: got {len(names)} names, wanted one for label {numbers[-1]}")
    own = [names[number] for number in numbers.tolist()]
    spelled = list(map(usable_name, own))
    warn_respelled(path, sum(new not in {None, old} for new, old in zip(spelled, own, strict=True)))
    return spelled
