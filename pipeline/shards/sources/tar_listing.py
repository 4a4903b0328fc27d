"""The samples of one tar: where they lie, their labels, and what is wrong with it."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.files import named
from pipeline.shards.format.fields import of_json
from pipeline.shards.format.names import usable_name
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.images import LARGEST_IMAGE, too_large
from pipeline.shards.sources.tar_files import TarFiles
from pipeline.shards.sources.tar_headers import SAMPLE, name_at, plain_samples
from pipeline.shards.sources.tar_walk import (
    LONGEST_TEXT,
    NO_LABEL,
    NOT_A_NUMBER,
    DamagedError,
    Layout,
    samples_of,
    split_name,
    walk_far,
)

# Offsets and sizes of the payloads of a sample, in bytes; 0 if there is no JSON.
PLACE = np.dtype([("tar", "<u4"), ("image", "<u8"), ("image_size", "<u4"), ("json", "<u8"), ("json_size", "<u4")])


class TarListing(NamedTuple):
    """Samples of one tar.

    `labels` [samples] are numbers as they stand there, or places in `names` if labels are names; `read` is how many
    bytes come before the damage, or all.
    """

    tar: int
    labels: NDArray[np.int64]
    names: list[str]
    places: NDArray[np.void]
    set_aside: list[SetAside]
    damage: str
    read: int


class SamplesIn(NamedTuple):
    """What a tar holds: [groups] of `SAMPLE`, its names, the stems of those that are no whole samples, and damage."""

    samples: NDArray[np.void]
    names: list[str]
    stems: list[str]
    damage: DamagedError | None


def list_tar(tars: TarFiles, layout: Layout, number: int) -> TarListing:
    """List one of some tars.

    Raises:
        NotWrittenError: it cannot be read.
    """
    path, name = tars.path(number), tars.names[number]
    with named(path, "not read"):
        samples, names, stems, damage = samples_in(path, layout)
        read = damage.at if damage else path.stat().st_size
    good = ~_are_bad(samples)
    faults = zip(stems, samples[~good], strict=True)
    set_aside = [_fault(f"{name}:{stem}", sample, layout) for stem, sample in faults]
    samples = samples[good]
    places = np.empty(len(samples), PLACE)
    places["tar"] = number
    for field in ("image", "image_size", "json", "json_size"):
        places[field] = samples[field]
    return TarListing(number, samples["label"].copy(), names, places, set_aside, str(damage or ""), read)


def _fault(name: str, sample: np.void, layout: Layout) -> SetAside:
    """Why a group of members is no sample."""
    if sample["label"] == NO_LABEL and not sample["image_size"]:
        return SetAside(name, f"neither image nor label: wanted .jpg or .png, and .{layout.label}", 0)
    if not sample["image_size"]:
        return SetAside(name, "no whole image: wanted .jpg or .png")
    if sample["image_size"] > LARGEST_IMAGE:
        return SetAside(name, too_large(int(sample["image_size"])))
    if sample["label"] == NO_LABEL:
        return SetAside(name, f"no label: wanted .{layout.label}")
    what = "number" if layout.is_number else "printable name"
    return SetAside(name, f"label: wanted a {what} in {f'{layout.field} of ' if layout.field else ''}.{layout.label}")


def samples_in(path: Path, layout: Layout) -> SamplesIn:
    """All samples of a tar, and whatever else has a sample's name."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size:  # nothing cannot be mapped
            tar = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if (samples := plain_samples(tar, layout)) is not None:
                names = [] if layout.is_number else _name_labels(file, samples, layout)
                bad = samples["header"][_are_bad(samples)].tolist()
                return SamplesIn(samples, names, [split_name(name_at(tar, header))[0] for header in bad], None)
        members, damage = walk_far(file)
        walked = list(samples_of(file, members, layout))
        samples = np.array([(0, *sample[1:]) for sample in walked], SAMPLE)
        names = [] if layout.is_number else _name_labels(file, samples, layout)
    stems = [walked[place].stem for place in np.flatnonzero(_are_bad(samples)).tolist()]
    return SamplesIn(samples, names, stems, damage)


def _are_bad(samples: NDArray[np.void]) -> NDArray[np.bool_]:
    size = samples["image_size"]
    bad: NDArray[np.bool_] = (samples["label"] < 0) | (size == 0) | (size > LARGEST_IMAGE)
    return bad


def _name_labels(file: BinaryIO, samples: NDArray[np.void], layout: Layout) -> list[str]:
    """Replace the labels of samples by numbers of names, and return these."""
    number_of: dict[str, int] = {}
    places = np.flatnonzero(samples["text"] > 0)
    for place, name in zip(places, _texts(file, samples[places], layout), strict=True):
        samples["label"][place] = NOT_A_NUMBER if name is None else number_of.setdefault(name, len(number_of))
    return list(number_of)


def _texts(file: BinaryIO, samples: NDArray[np.void], layout: Layout) -> Iterator[str | None]:
    """The name that the label of each sample is; None if it is none."""
    for place, size in samples[["text", "text_size"]].tolist():
        data = os.pread(file.fileno(), size, place) if size <= LONGEST_TEXT else b""
        yield _name_in_json(data, layout.field) if layout.field else _name(data)


def _name(text: bytes) -> str | None:
    try:
        return usable_name(text.decode().strip("\r\n"))
    except UnicodeDecodeError:
        return None


def _name_in_json(text: bytes, field: str) -> str | None:
    """A field that is a name or a number."""
    value = of_json(text).get(field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_label = isinstance(value, (str, int)) and not isinstance(value, bool)
    return usable_name(str(value)) if is_label else None
