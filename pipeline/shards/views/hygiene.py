"""Cleaning a set without changing it: faults are found from the images, and a selection leaves those images out.

Exact copies within an identity add nothing. The same image under two identities is label noise; neither label can be
trusted, so all of its copies are left out. A JPEG that was cut, and closed or saved again by some tool, decodes to grey
below the cut. Grey images and images with red and blue swapped are always counted, and left out on request; near copies
are looked for on request.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files import named
from pipeline.shards.decode import decoded
from pipeline.shards.format.index import open_index, sound_index
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.format.names import read_identities
from pipeline.shards.format.presence import check_tars
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.images import SetAsideError
from pipeline.shards.sources.tar_folder import keys_of
from pipeline.shards.views.near_copies import BANDS, HASH, load_imagehash, near_copies, near_hash
from pipeline.shards.views.select import refuse_in_the_way, select
from pipeline.shards.views.subset import with_at_least
from pipeline.shards.views.undecodable import read_undecodable
from pipeline.shards.workers import each_done

# Of one image: a digest of its bytes, whether it decodes, the mean distance of its channels from grey and how much
# bluer than red it is, both in levels of 256, the share of its rows that are missing, and its perceptual hash.
FACTS = np.dtype(
    [("digest", "S16"), ("readable", "?"), ("colour", "<f4"), ("blueness", "<f4"), ("missing", "<f4"), ("near", HASH)]
)
NOT_HASHED = np.zeros(BANDS, np.uint32)

# JPEG's rounding alone makes a channel of a grey picture differ by less than a level.
GREY_BELOW = 1.5
# Skin of every tone is redder than blue, by 20 levels or more in most photographs.
SWAPPED_ABOVE = 10.0
# Decoders give what is missing of a JPEG the level 128; saved again, it keeps that within two levels.
MISSING_LEVEL, MISSING_WITHIN, MISSING_ABOVE = 128, 2, 0.25

KIND = "clean"  # of a set without what is at fault

KEPT, UNREADABLE, CUT, TWO_PEOPLE, COPY, NEAR_TWO_PEOPLE, NEAR_COPY, GREY, SWAPPED, FEW_IMAGES, SUSPECT = range(11)
REASONS = (
    "",
    "does not decode",
    "cut: its lower part is grey of level 128",
    "the same image under another identity",
    "a copy within the identity",
    "nearly the same image under another identity",
    "nearly a copy within the identity",
    "grey",
    "bluer than red: channels swapped?",
    "identity of too few images",
    "far from its identity in training",
)


@dataclass(frozen=True)
class Cleaned:
    """The clean set, and how many samples were left out (or only counted) for each reason."""

    manifest: Manifest
    left_out: Counter[str]
    only_counted: Counter[str]


def clean(
    folder: Path,
    out: Path,
    *,
    min_images: int = 1,
    drop_grey: bool = False,
    drop_swapped: bool = False,
    drop_near: bool = False,
    undecodable: Path | None = None,
    suspects: Path | None = None,
    workers: int = 1,
    progress: Callable[[int], object] = lambda _samples: None,
) -> Cleaned:
    """Write to `out` the set of those samples of `folder` that have no fault.

    Args:
        folder: a set of shards, which stays as it is.
        out: a new folder for index, manifest and `rejected.tsv`.
        min_images: identities with fewer, after all else, are left out.
        drop_grey: leave out grey images.
        drop_swapped: leave out images that are bluer than red.
        drop_near: leave out near copies.
        undecodable: a list of samples of this set that training could not decode.
        suspects: a list in the same form of samples whose label training made doubtful.
        workers: processes that read and decode.
        progress: called with the number of samples of each tar.

    Raises:
        ShardError: nothing is left, what finds near copies is not installed, `out` is not new, a tar is not there or
            was made anew, or the list names no sample of this set.
        NotWrittenError: a tar cannot be read, or `out` cannot be written.
    """
    manifest = Manifest.load(folder)
    check_tars(folder, manifest)
    read_identities(folder, manifest)
    refuse_in_the_way(out, KIND)
    if drop_near:
        load_imagehash()
    listed = _listed(undecodable, folder, manifest) if undecodable else []
    doubtful = _listed(suspects, folder, manifest) if suspects else []
    rows = sound_index(folder, manifest)
    labels = rows["label"].astype(np.int64)
    facts = np.empty(len(labels), FACTS)
    look = partial(_look_at_tar, folder, manifest, drop_near)
    for first, found in each_done(look, range(len(manifest.tars)), workers):
        facts[first : first + len(found)] = found
        progress(len(found))
    facts["readable"][listed] = False
    verdicts = judge(facts, labels)
    spared = [GREY] * (not drop_grey) + [SWAPPED] * (not drop_swapped)
    only_counted = Counter(REASONS[v] for v in verdicts[np.isin(verdicts, spared)].tolist())
    verdicts[np.isin(verdicts, spared)] = KEPT
    if drop_near:
        _judge_near(verdicts, facts["near"], rows)
    verdicts[doubtful] = np.where(verdicts[doubtful] == KEPT, SUSPECT, verdicts[doubtful])
    kept = verdicts == KEPT
    few = ~with_at_least(np.where(kept, labels + 1, 0), min_images)
    verdicts[kept & few] = FEW_IMAGES
    set_aside = list(_name(folder, manifest, verdicts))
    view = select(folder, out, verdicts == KEPT, kind=KIND, set_aside=set_aside)
    return Cleaned(view, Counter(one.reason for one in set_aside), only_counted)


def _listed(file: Path, folder: Path, manifest: Manifest) -> list[int]:
    listed = read_undecodable(file, manifest)
    if not listed:
        raise ShardError(f"{file}: names no sample of {folder}, wanted some of the set {manifest.digest[:12]}")
    return listed


def look_at(image: bytes, near: bool) -> tuple[bytes, bool, float, float, float, NDArray[np.uint32]]:
    """The `FACTS` of one encoded image, with its perceptual hash if near copies are looked for."""
    digest = hashlib.blake2b(image, digest_size=15).digest() + b"."  # NumPy drops null bytes at the end
    try:
        picture = decoded(image)
    except SetAsideError:
        return digest, False, 0.0, 0.0, 0.0, NOT_HASHED
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    red, _, blue = pixels.mean((0, 1)).tolist()
    colour = float(np.abs(pixels - pixels.mean(2, keepdims=True)).mean())
    return digest, True, colour, blue - red, _missing(pixels), near_hash(picture) if near else NOT_HASHED


def _missing(pixels: NDArray[np.float32]) -> float:
    """The share of an image's rows, from the last one upwards, that have the level of what a cut file lacks."""
    is_there = (np.abs(pixels - MISSING_LEVEL) > MISSING_WITHIN).any((1, 2))
    return 1 - (int(np.flatnonzero(is_there).max(initial=-1)) + 1) / len(pixels)


def judge(facts: NDArray[np.void], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """[samples] the gravest of `REASONS` against each sample; `KEPT` if there is none."""
    verdicts = np.full(len(facts), KEPT, np.uint8)
    verdicts[facts["blueness"] > SWAPPED_ABOVE] = SWAPPED
    verdicts[facts["colour"] < GREY_BELOW] = GREY
    _, image = np.unique(facts["digest"], return_inverse=True)
    order = np.lexsort((np.arange(len(facts)), labels, image))
    same_image = np.diff(image[order]) == 0
    same_person = np.diff(labels[order]) == 0
    verdicts[order[1:][same_image & same_person]] = COPY
    of_two = np.unique(image[order[1:][same_image & ~same_person]])
    verdicts[np.isin(image, of_two)] = TWO_PEOPLE
    verdicts[facts["missing"] > MISSING_ABOVE] = CUT
    verdicts[~facts["readable"]] = UNREADABLE
    return verdicts


def _judge_near(verdicts: NDArray[np.uint8], hashes: NDArray[np.uint32], rows: NDArray[np.void]) -> None:
    """Give near copies among the samples without a fault their verdicts."""
    kept = np.flatnonzero(verdicts == KEPT)
    of_two, copies = near_copies(hashes[kept], rows["label"][kept], rows["size"][kept])
    verdicts[kept[of_two]], verdicts[kept[copies]] = NEAR_TWO_PEOPLE, NEAR_COPY


def _look_at_tar(folder: Path, manifest: Manifest, near: bool, tar: int) -> tuple[int, NDArray[np.void]]:
    """First row of a tar and the facts of its samples."""
    first, stop = manifest.first_rows[tar : tar + 2].tolist()
    facts = np.empty(stop - first, FACTS)
    path = folder / manifest.tars[tar].name
    with named(path, "not read"), path.open("rb") as file:
        for place, (offset, size, _) in enumerate(open_index(folder, manifest)[first:stop].tolist()):
            file.seek(offset)
            facts[place] = look_at(file.read(size), near)
    return first, facts


def _name(folder: Path, manifest: Manifest, verdicts: NDArray[np.uint8]) -> Iterator[SetAside]:
    """Key and reason of every sample that is left out; only the tars that hold one are read."""
    rows = open_index(folder, manifest)
    for tar, (first, stop) in enumerate(zip(manifest.first_rows, manifest.first_rows[1:], strict=False)):
        places = np.flatnonzero(verdicts[first:stop]) + first
        if len(places):
            keys = keys_of(folder / manifest.tars[tar].name, rows["offset"][places].tolist())
            for key, verdict in zip(keys, verdicts[places], strict=True):
                yield SetAside(key, REASONS[verdict])
