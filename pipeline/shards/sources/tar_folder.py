"""A folder of WebDataset tars, to be sharded again: other sizes, another order, or from another tool.

A sample is the members of one stem: an image, its label and perhaps `.json` with a `key`; `tar_layout` says which is
which. Labels are numbers, whose names come from `identities.txt` if it is there, or names.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files import named
from pipeline.shards.format.fields import Fields, of_json
from pipeline.shards.format.manifest import ShardError
from pipeline.shards.format.names import IDENTITIES_NAME, UNUSABLE, usable_name, warn_respelled
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.images import SetAsideError
from pipeline.shards.sources import Read, changed_at
from pipeline.shards.sources.labels import number_names, ranked, sorted_identities
from pipeline.shards.sources.loss import amount, summary
from pipeline.shards.sources.splits import EVERYTHING, Choice
from pipeline.shards.sources.tar_files import TarFiles, find_tars
from pipeline.shards.sources.tar_headers import stem_before
from pipeline.shards.sources.tar_listing import TarListing, list_tar, samples_in
from pipeline.shards.sources.tar_walk import WEBDATASET, Layout
from pipeline.shards.workers import each_done


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
    unpacked: Mapping[str, Path] = field(default_factory=dict)  # where those lie that were compressed
    label_field: str = ""  # of the JSON, if it holds the label, which is no field of the sample then

    def digest(self) -> str:
        """SHA-256 of identities, labels, tars and places."""
        digest = hashlib.sha256("\n".join([*self.identities, "", *self.tars]).encode())
        digest.update(self.labels.data)
        digest.update(self.places.data)
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """The `key` of the sample's JSON, or the tar and the sample's name in it."""
        return self._read(sample).key

    def modified(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """[samples] when the tar of each was last changed."""
        return np.array([changed_at(f"{self.folder}/{tar}") for tar in self.tars])[self.places["tar"][samples]]

    def read(self, sample: int) -> bytes:
        """The encoded image."""
        image = self._read(sample).image
        if isinstance(image, SetAsideError):
            raise image
        return image

    def read_many(self, samples: NDArray[np.int64]) -> Iterator[Read]:
        """Samples, each from its tar opened once."""
        return map(self._read, samples.tolist())

    def _path(self, tar: str) -> str:
        return str(self.unpacked[tar]) if tar in self.unpacked else f"{self.folder}/{tar}"

    def _read(self, sample: int) -> Read:
        tar, image, image_size, text, text_size = self.places[sample].tolist()
        path = self._path(self.tars[tar])
        try:
            # Opened each time: a set has more tars than a process may have open files.
            descriptor = os.open(path, os.O_RDONLY)
            try:
                data = os.pread(descriptor, image_size, image)
                fields = of_json(os.pread(descriptor, text_size, text))
                key = _key(self.tars[tar], descriptor, image, fields)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}") from error
        if self.label_field:
            fields = {name: value for name, value in fields.items() if name != self.label_field}
        return Read(key, data if len(data) == image_size else SetAsideError("truncated: the tar ends in it"), fields)


def _key(tar: str, descriptor: int, image: int, fields: Fields) -> str:
    """How a sample of an open tar is named: by its JSON, or by the tar and its name there."""
    return str(fields.get("key") or f"{tar}:{stem_before(descriptor, image) or image}")


def open_tars(place: Path, choice: Choice = EVERYTHING, workers: int = 1) -> TarSource:
    """List the samples of plain tars with `.jpg` or `.png` and `.cls`, as sets have them; as `list_tars`.

    Raises:
        ShardError: no tar, and as `list_tars`.
    """
    return list_tars(find_tars(place, choice.pattern).chosen(choice), WEBDATASET, workers)


def list_tars(tars: TarFiles, layout: Layout, workers: int = 1) -> TarSource:
    """List the samples of tars by their headers, in `workers` processes.

    Raises:
        ShardError: no labelled image in any, or a label outside `identities.txt`.
        NotWrittenError: a tar cannot be read.
    """
    each = each_done(partial(list_tar, tars, layout), range(len(tars.names)), workers)
    listings = sorted(each, key=lambda one: one.tar)
    set_aside = list(_set_aside(tars, listings))
    if not any(len(listing.labels) for listing in listings):
        found = f"{tars.folder}: got {amount(len(tars.names), 'tar')} without labelled images"
        wanted = f".jpg or .png with .{layout.label} (or --label-column with an extension, a field, folder or tar)"
        raise ShardError(f"{found}, wanted {wanted}; {summary(set_aside)}")
    identities, labels, kept = _numbered(tars.folder, listings, set_aside) if layout.is_number else _named(listings)
    places = np.concatenate([listing.places for listing in listings])
    del listings
    if not kept.all():
        labels, places = labels[kept], places[kept]
    return TarSource(
        tars.folder,
        tars.names,
        identities,
        labels,
        set_aside,
        places,
        unpacked=tars.unpacked,
        label_field=layout.field,
    )


def _numbered(
    folder: Path, listings: Sequence[TarListing], set_aside: list[SetAside]
) -> tuple[list[str], NDArray[np.uint32], NDArray[np.bool_]]:
    """Identities, labels of samples whose labels are numbers, and which samples have a name that can be used."""
    distinct, dense = ranked([listing.labels for listing in listings])
    names = _names(folder, distinct)
    usable = np.array([name is not None for name in names])
    for number, samples in zip(distinct[~usable].tolist(), np.bincount(dense)[~usable].tolist(), strict=True):
        set_aside.append(SetAside(f"{IDENTITIES_NAME}:{number + 1}", UNUSABLE, samples))
    rank = np.cumsum(usable, dtype=np.uint32) - 1
    return [name for name in names if name is not None], rank[dense], usable[dense]


def _named(listings: Sequence[TarListing]) -> tuple[list[str], NDArray[np.uint32], NDArray[np.bool_]]:
    """Identities, labels of samples whose labels are numbers of their own tar's names, and that all are kept."""
    number_of: dict[str, int] = {}
    numbers = []
    for listing in listings:
        own = np.array([number_of.setdefault(name, len(number_of)) for name in listing.names], np.uint32)
        numbers.append(own[listing.labels])
    identities, rank = sorted_identities(list(number_of))
    labels = rank[np.concatenate(numbers)]
    return identities, labels, np.ones(len(labels), bool)


def _set_aside(tars: TarFiles, listings: Sequence[TarListing]) -> Iterator[SetAside]:
    """All that was set aside; a damaged tar counts as many samples as fill what could not be read of it."""
    samples = sum(len(listing.labels) for listing in listings)
    mean = sum(listing.read for listing in listings) / max(1, samples)
    for listing in listings:
        yield from listing.set_aside
        if listing.damage:
            unread = tars.path(listing.tar).stat().st_size - listing.read
            yield SetAside(tars.names[listing.tar], listing.damage, max(1, round(unread / max(1, mean))))


def texts_of(tar: Path, images: Sequence[int]) -> list[tuple[int, int]]:
    """Offset and size of the JSON of the samples whose images lie at these offsets of a tar; 0 where there is none.

    Raises:
        NotWrittenError: the tar cannot be read.
    """
    with named(tar, "not read"):
        samples = samples_in(tar, WEBDATASET).samples
    text_of = {image: (text, size) for image, text, size in samples[["image", "json", "json_size"]].tolist()}
    return [text_of.get(image, (0, 0)) for image in images]


def keys_of(tar: Path, images: Sequence[int]) -> list[str]:
    """Keys of the samples whose images lie at these offsets of a tar: from their JSON, or else their names there.

    Raises:
        NotWrittenError: the tar cannot be read.
    """
    keys = []
    with named(tar, "not read"), tar.open("rb") as file:
        for image, (text, size) in zip(images, texts_of(tar, images), strict=True):
            fields = of_json(os.pread(file.fileno(), size, text))
            keys.append(_key(tar.name, file.fileno(), image, fields))
    return keys


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
