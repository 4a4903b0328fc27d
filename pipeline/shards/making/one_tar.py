"""One tar of a plan, with its indexes and the record that says it is whole.

The disk is synced once, at the end of a run. A tar that a power cut damaged before that differs from the digest in
its record, and is written again.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import compress, repeat, starmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.files import file_sha256, locked, remove_asides, write_file, written_whole
from pipeline.shards.format.fields import Fields, to_json
from pipeline.shards.format.index import SAMPLE, dali_lines
from pipeline.shards.format.manifest import PROGRESS, TarEntry
from pipeline.shards.format.rejected import SetAside
from pipeline.shards.format.tars import TarStream
from pipeline.shards.images import SetAsideError, extension_of
from pipeline.shards.making.plan import Plan
from pipeline.shards.sources.loss import refuse_lost

# Samples that are read and then written at once: enough to spread the cost of a call, few enough to stay in the
# processor's cache from one pass over them to the next.
BATCH = 128


@dataclass(frozen=True)
class TarRecord:
    """What a finished tar adds to the set; `rows` are those of the binary index."""

    entry: TarEntry
    idx_sha256: str
    set_aside: list[SetAside]
    rows: NDArray[np.void]


class Batch(NamedTuple):
    """Samples on their way into a tar, by columns.

    A sample's name is its place in the shuffled listing, so that a file set aside leaves a gap.
    """

    places: list[int]
    extensions: list[str]
    images: list[bytes]
    labels: list[int]
    keys: list[str]
    fields: list[Fields]


class Written(NamedTuple):
    """Counts of one finished tar."""

    samples: int  # including those set aside
    bytes: int
    set_aside: int


def write_tar(
    plan: Plan,
    tar: int,
    *,
    send: Callable[[Path], object] | None = None,
    is_sent: Callable[[], bool] = lambda: True,
) -> Written:
    """Write tar number `tar` of the plan unless it is there.

    Args:
        plan, tar: what to write.
        send: takes every file of the tar elsewhere, its record last.
        is_sent: whether that record is there; if not, one that is here was sent to another place, and does not count.

    Raises:
        ShardError: the source is gone.
        NotWrittenError: the disk is full, read-only or broken.
    """
    # Of two processes on one part, the second waits and then finds the record; a dead one's lock is free at once. It is
    # no lease of `cluster.lease`: that beats in a thread and is judged by silence, too much for a second's work.
    with locked(_record_path(plan, tar).with_suffix(".lock")):
        record = _whole_record(plan, tar, is_here=send is None) if is_sent() else None
        record = record or _write(plan, tar, send or (lambda _path: None))
    samples = int(plan.bounds[tar + 1] - plan.bounds[tar])
    return Written(samples, record.entry.bytes if record.entry.samples else 0, len(record.set_aside))


def has_record(plan: Plan, tar: int) -> bool:
    """Whether the tar was finished, by whichever process."""
    return _record_path(plan, tar).is_file()


def read_record(plan: Plan, tar: int) -> TarRecord:
    """The record of a finished tar."""
    path = _record_path(plan, tar)
    raw = json.loads(path.read_bytes())
    set_aside = list(starmap(SetAside, raw["set_aside"]))
    return TarRecord(TarEntry(**raw["entry"]), raw["idx_sha256"], set_aside, np.load(path.with_suffix(".npy")))


def record_files(plan: Plan, tar: int) -> tuple[Path, Path]:
    """The rows and the record of a tar; the record comes last, and says that the rows and the tar are whole."""
    path = _record_path(plan, tar)
    return path.with_suffix(".npy"), path


def files_of(plan: Plan, tar: int) -> list[Path]:
    """A finished tar and its index; none if every file of it was set aside."""
    path = _tar_path(plan, tar)
    return [path, path.with_suffix(".idx")] if path.is_file() else []


def _write(plan: Plan, tar: int, send: Callable[[Path], object]) -> TarRecord:
    path = _tar_path(plan, tar)
    remove_asides(path.parent, plan.tar_name(tar))
    rows = [np.empty(0, SAMPLE)]
    lines: list[str] = []
    set_aside: list[SetAside] = []
    with written_whole(path, synced=False) as file:
        stream = TarStream(file)
        for start in range(plan.bounds[tar], plan.bounds[tar + 1], BATCH):
            stop = min(start + BATCH, plan.bounds[tar + 1])
            batch = _read(plan, start, stop, set_aside)
            if batch.places:
                new_rows, new_lines = _add(stream, batch)
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
    for saved in record_files(plan, tar):
        send(saved)
    return record


def _read(plan: Plan, start: int, stop: int, set_aside: list[SetAside]) -> Batch:
    """Samples at places start..stop of the order; those that cannot be used are appended to `set_aside`."""
    numbers = plan.order[start:stop]
    keys, images, fields = zip(*plan.source.read_many(numbers), strict=True)
    refuse_lost(plan.source, keys, images)
    checks = [_check(plan, image) for image in images]
    set_aside += [SetAside(key, str(why)) for key, why in zip(keys, checks, strict=True) if not isinstance(why, str)]
    usable = [isinstance(check, str) for check in checks]
    columns = (range(start, stop), checks, images, plan.source.labels[numbers].tolist(), keys, fields)
    return Batch(*map(list, map(compress, columns, repeat(usable))))


def _check(plan: Plan, image: bytes | SetAsideError) -> str | SetAsideError:
    """The extension of an image, or why it cannot be used."""
    try:
        return image if isinstance(image, SetAsideError) else extension_of(image, plan.image_height, plan.image_width)
    except SetAsideError as error:
        return error


def _add(stream: TarStream, batch: Batch) -> tuple[NDArray[np.void], str]:
    """Append image, label, key and fields of each sample; returns its rows and its lines of the two indexes."""
    extensions: list[str] = []
    names: list[str] = []
    payloads: list[bytes] = []
    for place, extension, image, label, key, fields in zip(*batch, strict=True):
        stem = f"{place:012d}."
        extensions += (extension, "cls", "json")
        names += (stem + extension, stem + "cls", stem + "json")
        payloads += (image, b"%d" % label, to_json(key, fields))
    offsets = stream.add(names, payloads)
    sizes = list(map(len, payloads))
    rows = np.empty(len(batch.places), SAMPLE)
    rows["offset"], rows["size"], rows["label"] = offsets[::3], sizes[::3], batch.labels
    return rows, dali_lines(extensions, offsets.tolist(), sizes, names)


def _save_record(plan: Plan, tar: int, record: TarRecord) -> None:
    """Write the rows and then the record: once it is there, so are the tar and its index."""
    path = _record_path(plan, tar)
    with written_whole(path.with_suffix(".npy"), synced=False) as file:
        np.save(file, record.rows)
    raw = {"entry": asdict(record.entry), "idx_sha256": record.idx_sha256, "set_aside": record.set_aside}
    write_file(path, json.dumps(raw).encode(), synced=False)


def _whole_record(plan: Plan, tar: int, *, is_here: bool) -> TarRecord | None:
    """The tar's record, if it has one and its files, if they are to be here, are still those of the record."""
    if not has_record(plan, tar):
        return None
    try:
        record = read_record(plan, tar)
        if _changed(plan, tar):
            return None
    except (OSError, ValueError, EOFError, LookupError, TypeError):  # a power cut, or one who finished
        return None
    if is_here and record.entry.samples:
        path = _tar_path(plan, tar)
        if (file_sha256(path), file_sha256(path.with_suffix(".idx"))) != (record.entry.sha256, record.idx_sha256):
            return None
    return record if len(record.rows) == record.entry.samples else None


def _changed(plan: Plan, tar: int) -> bool:
    """Whether a sample of the tar changed after the tar was recorded."""
    modified = plan.source.modified(plan.order[plan.bounds[tar] : plan.bounds[tar + 1]])
    return bool(modified.max(initial=0) > _record_path(plan, tar).stat().st_mtime)


def _record_path(plan: Plan, tar: int) -> Path:
    return plan.folder / PROGRESS / f"{plan.tar_name(tar)}.json"


def _tar_path(plan: Plan, tar: int) -> Path:
    return plan.folder / f"{plan.tar_name(tar)}.tar"
