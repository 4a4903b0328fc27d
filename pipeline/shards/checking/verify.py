"""Whether a set of shards matches its manifest: digests, indexes, labels and, for some or all, the pixels."""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby, starmap
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.stop import one_line
from pipeline.files import file_sha256
from pipeline.shards.checking.erased import images_left, names_left
from pipeline.shards.decode import decoded
from pipeline.shards.format.index import FILE_NAME as INDEX
from pipeline.shards.format.index import open_index
from pipeline.shards.format.manifest import Manifest, ShardError
from pipeline.shards.format.names import IDENTITIES_NAME
from pipeline.shards.format.rejected import REJECTED_NAME, read_rejected
from pipeline.shards.images import SetAsideError, extension_of
from pipeline.shards.sources.tar_walk import Member, samples_of, walk_far
from pipeline.shards.views.select import VIEWS
from pipeline.shards.workers import each_done


class Fault(NamedTuple):
    """One thing that is not as the manifest says."""

    file: str
    what: str


def verify(
    folder: Path,
    *,
    decode_every: int = 0,
    without: Collection[str] = (),
    workers: int = 1,
    progress: Callable[[int], object] = lambda _samples: None,
) -> list[Fault]:
    """Check every byte of a set; the list of faults is empty if the set is sound.

    Args:
        folder: of the manifest.
        decode_every: 1 decodes every image, 100 every hundredth, 0 none.
        without: names of people of whom nothing may be there; see `erased`.
        workers: processes that read tars.
        progress: called with the number of samples of each checked tar.

    Raises:
        ShardError: there is no sound manifest to compare with.
    """
    manifest = Manifest.load(folder)
    faults = list(_check_own_files(folder, manifest))
    people = frozenset(without)
    if people:
        faults += starmap(Fault, names_left(folder, manifest, people))
    check = partial(_check_tar, folder, manifest, decode_every, people)
    for samples, found in each_done(check, range(len(manifest.tars)), workers):
        faults += found
        progress(samples)
    return sorted(faults)


def _check_own_files(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    try:
        largest = int(open_index(folder, manifest)["label"].max(initial=0))
        if largest >= manifest.identities:
            yield Fault(INDEX, f"label: got {largest}, wanted less than {manifest.identities}")
    except (ShardError, OSError) as error:
        yield Fault(INDEX, one_line(error))
    listed = len(read_rejected(folder))
    if listed != manifest.set_aside:
        yield Fault(REJECTED_NAME, f"got {listed:,} files, wanted {manifest.set_aside:,} as in manifest.json")
    for name, digest in ((INDEX, manifest.index_sha256), (IDENTITIES_NAME, manifest.identities_sha256)):
        yield from _check_digest(folder / name, name, digest)


def _check_digest(path: Path, name: str, wanted: str) -> Iterator[Fault]:
    try:
        if (got := file_sha256(path)) != wanted:
            yield Fault(name, f"sha256: got {got or 'no file'}, wanted {wanted}")
    except OSError as error:
        yield Fault(name, one_line(error))


def _check_tar(
    folder: Path, manifest: Manifest, decode_every: int, people: Collection[str], tar: int
) -> tuple[int, list[Fault]]:
    """Samples and faults of one tar; a fault does not keep the others from being found."""
    entry = manifest.tars[tar]
    path = folder / entry.name
    faults = list(_check_digest(path, entry.name, entry.sha256))
    if not path.is_file():
        return entry.samples, faults
    try:
        with path.open("rb") as file:
            found = _check_members(file, folder, manifest, decode_every, people, tar)
            faults.extend(Fault(entry.name, what) for what in found)
    except OSError as error:
        faults.append(Fault(entry.name, one_line(error)))
    return entry.samples, faults


def _check_members(
    file: BinaryIO, folder: Path, manifest: Manifest, decode_every: int, people: Collection[str], tar: int
) -> Iterator[str]:
    """Faults inside a tar: its structure, the rows of the index, the pixels, and its `.idx`."""
    path = folder / manifest.tars[tar].name
    members, damage = walk_far(file)
    if damage is not None:
        yield f"{damage}; samples behind byte {damage.at:,} are not compared"
    numbers = np.arange(*manifest.first_rows[tar : tar + 2])
    with suppress(ShardError):  # an index that is not sound is a fault of its own
        rows = open_index(folder, manifest)[numbers]
        if people:
            yield from images_left(path, members, frozenset(rows["offset"].tolist()), people)
        if damage:
            numbers, rows = numbers[rows["offset"] < damage.at], rows[rows["offset"] < damage.at]
        yield from _check_rows(file, members, numbers, rows, labels=manifest.made.source not in VIEWS)
        yield from _check_pixels(file, rows[::decode_every] if decode_every else rows[:0], manifest)
    index = path.with_suffix(".idx")
    if not index.is_file():
        yield "its .idx: got no file"
    elif not damage and _dali_text(members) != index.read_text(errors="replace"):
        yield "its .idx is of another tar"


def _check_rows(
    file: BinaryIO, members: list[Member], numbers: NDArray[np.int64], rows: NDArray[np.void], *, labels: bool
) -> Iterator[str]:
    """Whether each row of the index is an image of the tar; a set made by selection has labels of its own."""
    samples = {sample.image: sample for sample in samples_of(file, members)}
    for number, (offset, size, label) in zip(numbers.tolist(), rows.tolist(), strict=True):
        sample = samples.get(offset)
        if sample is None or sample.image_size != size:
            yield f"index row {number}: got {size} bytes at {offset}, wanted an image of the tar"
        elif labels and sample.label != label:
            yield f"index row {number}: got label {label}, wanted {sample.label} as in {sample.stem}.cls"


def _check_pixels(file: BinaryIO, rows: NDArray[np.void], manifest: Manifest) -> Iterator[str]:
    """Whether images decode whole and have the manifest's size."""
    end = os.fstat(file.fileno()).st_size
    for offset, size, _label in rows[rows["offset"] < end].tolist():  # the others are faults of the index
        file.seek(offset)
        data = file.read(size)
        try:
            extension_of(data, manifest.image_height, manifest.image_width)
            decoded(data)
        except SetAsideError as error:
            yield f"image of {size} bytes at {offset}: {error}"


def _dali_text(members: list[Member]) -> str:
    """The DALI index of these members."""
    lines = []
    for stem, group in groupby(members, key=lambda member: member.stem):
        parts = (f"{m.extension} {m.offset} {m.size} {stem}.{m.extension}" for m in group)
        lines.append(" ".join(parts))
    return "\n".join([f"v1.2 {len(lines)}", *lines, ""])
