"""Whether a set of shards matches its manifest: digests, indexes, labels and, for some or all, the pixels."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.shards.build import IDENTITIES_NAME
from pipeline.shards.images import SetAsideError, extension_of
from pipeline.shards.index import FILE_NAME as INDEX
from pipeline.shards.index import open_index
from pipeline.shards.manifest import Manifest
from pipeline.shards.one_tar import file_sha256
from pipeline.shards.sources.tar_walk import Member, samples_of, walk
from pipeline.shards.views import VIEWS
from pipeline.shards.workers import each_done


class Fault(NamedTuple):
    """One thing that is not as the manifest says."""

    file: str
    what: str


def verify(
    folder: Path, *, decode_every: int = 0, workers: int = 1, progress: Callable[[int], object] = lambda _samples: None
) -> list[Fault]:
    """Check every byte of a set; the list of faults is empty if the set is sound.

    Args:
        folder: of the manifest.
        decode_every: 1 decodes every image, 100 every hundredth, 0 none.
        workers: processes that read tars.
        progress: called with the number of samples of each checked tar.

    Raises:
        ShardError: there is no sound manifest or index to compare with.
    """
    manifest = Manifest.load(folder)
    faults = list(_check_own_files(folder, manifest))
    check = partial(_check_tar, folder, manifest, decode_every)
    for samples, found in each_done(check, range(len(manifest.tars)), workers):
        faults += found
        progress(samples)
    return sorted(faults)


def _check_own_files(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    largest = int(open_index(folder, manifest)["label"].max(initial=0))
    if largest >= manifest.identities:
        yield Fault(INDEX, f"label: got {largest}, wanted less than {manifest.identities}")
    for name, digest in ((INDEX, manifest.index_sha256), (IDENTITIES_NAME, manifest.identities_sha256)):
        if (got := file_sha256(folder / name)) != digest:
            yield Fault(name, f"sha256: got {got or 'no file'}, wanted {digest}")


def _check_tar(folder: Path, manifest: Manifest, decode_every: int, tar: int) -> tuple[int, list[Fault]]:
    """Samples and faults of one tar."""
    entry = manifest.tars[tar]
    path = folder / entry.name
    if (got := file_sha256(path)) != entry.sha256:
        return entry.samples, [Fault(entry.name, f"sha256: got {got or 'no file'}, wanted {entry.sha256}")]
    first, stop = manifest.first_rows[tar : tar + 2].tolist()
    rows = open_index(folder, manifest)[first:stop]
    with path.open("rb") as file:
        try:
            members = list(walk(file))
        except SetAsideError as error:
            return entry.samples, [Fault(entry.name, str(error))]
        faults = list(_check_rows(file, members, rows, first, labels=manifest.made.source not in VIEWS))
        faults += _check_pixels(file, rows[::decode_every] if decode_every else rows[:0], manifest)
    faults += [] if _dali_text(members) == path.with_suffix(".idx").read_text() else ["its .idx is of another tar"]
    return entry.samples, [Fault(entry.name, what) for what in faults]


def _check_rows(
    file: BinaryIO, members: list[Member], rows: NDArray[np.void], first: int, *, labels: bool
) -> Iterator[str]:
    """Whether each row of the index is an image of the tar; a set made by selection has labels of its own."""
    samples = {sample.image: sample for sample in samples_of(file, members)}
    for number, (offset, size, label) in enumerate(rows.tolist(), start=first):
        sample = samples.get(offset)
        if sample is None or sample.image_size != size:
            yield f"index row {number}: got {size} bytes at {offset}, wanted an image of the tar"
        elif labels and sample.label != label:
            yield f"index row {number}: got label {label}, wanted {sample.label} as in {sample.stem}.cls"


def _check_pixels(file: BinaryIO, rows: NDArray[np.void], manifest: Manifest) -> Iterator[str]:
    """Whether images decode whole and have the manifest's size."""
    for offset, size, _label in rows.tolist():
        file.seek(offset)
        data = file.read(size)
        try:
            extension_of(data, manifest.image_height, manifest.image_width)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        except (SetAsideError, OSError, SyntaxError) as error:  # Pillow raises SyntaxError on a broken PNG
            yield f"image of {size} bytes at {offset}: {error}"


def _dali_text(members: list[Member]) -> str:
    """The DALI index of these members."""
    lines = []
    for stem, group in groupby(members, key=lambda member: member.stem):
        parts = (f"{m.extension} {m.offset} {m.size} {stem}.{m.extension}" for m in group)
        lines.append(" ".join(parts))
    return "\n".join([f"v1.2 {len(lines)}", *lines, ""])
