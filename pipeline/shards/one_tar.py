"""One tar of a plan, with its indexes and the record that says it is whole.

The disk is waited for once, at the end of a run. What a power cut leaves before that is seen by the digests of the
record, and made again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.files import write_file, written_whole
from pipeline.shards.errors import SetAsideError
from pipeline.shards.images import extension_of
from pipeline.shards.index import SAMPLE, dali_lines
from pipeline.shards.manifest import TarEntry
from pipeline.shards.plan import PROGRESS, Plan
from pipeline.shards.sources import SetAside
from pipeline.shards.tars import TarStream

# Samples that are read and then written at once: enough to spread the cost of a call, 1 to 2 MB of memory.
BATCH = 256


@dataclass(frozen=True)
class TarRecord:
    """What a finished tar adds to the set; `rows` are those of the binary index."""

    entry: TarEntry
    idx_sha256: str
    set_aside: list[SetAside]
    rows: NDArray[np.void]


class Sample(NamedTuple):
    """One sample on its way into a tar; `stem` is the name of its three members without extension."""

    stem: str
    extension: str
    image: bytes
    label: int
    key: str


def write_tar(plan: Plan, tar: int, *, send: Callable[[Path], object] | None = None) -> int:
    """Write tar number `tar` of the plan unless it is there; return how many source files it took.

    `send` takes the tar and then its index elsewhere, before the record says that they are whole.

    Raises:
        ShardError: the disk is full, or the source is gone.
    """
    if not _is_whole(plan, tar, is_here=send is None):
        _write(plan, tar, send or (lambda _path: None))
    return int(plan.bounds[tar + 1] - plan.bounds[tar])


def has_record(plan: Plan, tar: int) -> bool:
    """Whether the tar was finished, by whichever process."""
    return _record_path(plan, tar).is_file()


def read_record(plan: Plan, tar: int) -> TarRecord:
    """The record of a finished tar."""
    path = _record_path(plan, tar)
    raw = json.loads(path.read_bytes())
    set_aside = [SetAside(*pair) for pair in raw["set_aside"]]
    return TarRecord(TarEntry(**raw["entry"]), raw["idx_sha256"], set_aside, np.load(path.with_suffix(".npy")))


def files_of(plan: Plan, tar: int) -> list[Path]:
    """A finished tar and its index; none when every file of it was set aside."""
    path = _tar_path(plan, tar)
    return [path, path.with_suffix(".idx")] if path.is_file() else []


def _write(plan: Plan, tar: int, send: Callable[[Path], object]) -> None:
    path = _tar_path(plan, tar)
    rows = [np.empty(0, SAMPLE)]
    lines: list[str] = []
    set_aside: list[SetAside] = []
    with written_whole(path, synced=False) as file:
        stream = TarStream(file)
        for start in range(plan.bounds[tar], plan.bounds[tar + 1], BATCH):
            stop = min(start + BATCH, plan.bounds[tar + 1])
            if samples := list(_read(plan, start, stop, set_aside)):
                new_rows, new_lines = _add(stream, samples)
                rows.append(new_rows)
                lines.append(new_lines)
        digest = stream.close()
    entry = TarEntry(path.name, sum(map(len, rows)), stream.written, digest)
    index = f"v1.2 {entry.samples}\n{''.join(lines)}".encode()
    if entry.samples:
        write_file(path.with_suffix(".idx"), index, synced=False)
        send(path)
        send(path.with_suffix(".idx"))
    else:
        path.unlink()  # DALI refuses a tar without samples
    record = TarRecord(entry, hashlib.sha256(index).hexdigest(), set_aside, np.concatenate(rows))
    _save_record(plan, tar, record)


def _read(plan: Plan, start: int, stop: int, set_aside: list[SetAside]) -> Iterator[Sample]:
    """Samples at places start..stop of the order; those that cannot be used are appended to `set_aside`."""
    source = plan.source
    numbers = plan.order[start:stop]
    # A sample's name is its place in the shuffled listing; a file set aside leaves a gap.
    places = zip(range(start, stop), numbers.tolist(), source.labels[numbers].tolist(), strict=True)
    for place, number, label in places:
        key = source.key(number)
        try:
            image = source.read(number)
            extension = extension_of(image, plan.image_height, plan.image_width)
        except SetAsideError as error:
            set_aside.append(SetAside(key, str(error)))
        else:
            yield Sample(f"{place:012d}", extension, image, label, key)


def _add(stream: TarStream, samples: list[Sample]) -> tuple[NDArray[np.void], str]:
    """Append image, label and key of each sample; returns its rows and its lines of the two indexes."""
    extensions: list[str] = []
    names: list[str] = []
    payloads: list[bytes] = []
    for stem, extension, image, label, key in samples:
        extensions += (extension, "cls", "json")
        names += (f"{stem}.{extension}", f"{stem}.cls", f"{stem}.json")
        payloads += (image, b"%d" % label, f'{{"key": {json.dumps(key)}}}'.encode())
    offsets = stream.add(names, payloads)
    sizes = list(map(len, payloads))
    rows = np.empty(len(samples), SAMPLE)
    rows["offset"], rows["size"] = offsets[::3], sizes[::3]
    rows["label"] = [sample.label for sample in samples]
    return rows, dali_lines(extensions, offsets.tolist(), sizes, names)


def _save_record(plan: Plan, tar: int, record: TarRecord) -> None:
    """Write the rows and then the record: once it is there, so are the tar and its index."""
    path = _record_path(plan, tar)
    with written_whole(path.with_suffix(".npy"), synced=False) as file:
        np.save(file, record.rows)
    raw = {"entry": asdict(record.entry), "idx_sha256": record.idx_sha256, "set_aside": record.set_aside}
    write_file(path, json.dumps(raw).encode(), synced=False)


def _is_whole(plan: Plan, tar: int, *, is_here: bool) -> bool:
    """Whether the tar has a record, and its files, if they are to be here, are still those of the record."""
    if not has_record(plan, tar):
        return False
    try:
        record = read_record(plan, tar)
    except (OSError, ValueError, EOFError, LookupError, TypeError):  # what a power cut left of it
        return False
    if not is_here or not record.entry.samples:
        return len(record.rows) == record.entry.samples
    path = _tar_path(plan, tar)
    digests = record.entry.sha256, record.idx_sha256
    files_are_whole = (file_sha256(path), file_sha256(path.with_suffix(".idx"))) == digests
    return len(record.rows) == record.entry.samples and files_are_whole


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; the empty string when it is not there."""
    if not path.is_file():
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _record_path(plan: Plan, tar: int) -> Path:
    return plan.folder / PROGRESS / f"{plan.tar_name(tar)}.json"


def _tar_path(plan: Plan, tar: int) -> Path:
    return plan.folder / f"{plan.tar_name(tar)}.tar"
