"""One tar of a plan, with its indexes and the record that says it is whole."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.errors import SetAsideError
from pipeline.shards.files import write_file, written_whole
from pipeline.shards.images import read_header
from pipeline.shards.index import SAMPLE, Component, dali_index
from pipeline.shards.manifest import TarEntry
from pipeline.shards.plan import PROGRESS, Plan
from pipeline.shards.sources import SetAside
from pipeline.shards.tars import TarStream


@dataclass(frozen=True)
class TarRecord:
    """What a finished tar adds to the set; `rows` are those of the binary index."""

    entry: TarEntry
    set_aside: list[SetAside]
    rows: NDArray[np.void]


def write_tar(plan: Plan, tar: int) -> int:
    """Write tar number `tar` of the plan unless it is there; return how many source files it took.

    Raises:
        ShardError: the disk is full, or the source is gone.
    """
    samples = plan.order[plan.bounds[tar] : plan.bounds[tar + 1]].tolist()
    if not _is_whole(plan, tar):
        _write(plan, tar, samples)
    return len(samples)


def read_record(plan: Plan, tar: int) -> TarRecord:
    """The record of a finished tar."""
    path = _record_path(plan, tar)
    raw = json.loads(path.read_bytes())
    set_aside = [SetAside(*pair) for pair in raw["set_aside"]]
    return TarRecord(TarEntry(**raw["entry"]), set_aside, np.load(path.with_suffix(".npy")))


def _write(plan: Plan, tar: int, samples: list[int]) -> None:
    path = plan.folder / f"{plan.tar_name(tar)}.tar"
    rows: list[tuple[int, int, int]] = []
    members: list[list[Component]] = []
    set_aside: list[SetAside] = []
    with written_whole(path) as file:
        stream = TarStream(file)
        # A sample's number is its place in the shuffled listing; a file set aside leaves a gap.
        for number, sample in enumerate(samples, start=int(plan.bounds[tar])):
            try:
                one = _add_sample(stream, plan, number, sample)
            except SetAsideError as error:
                set_aside.append(SetAside(plan.source.key(sample), str(error)))
            else:
                members.append(one)
                rows.append((one[0][1], one[0][2], int(plan.source.labels[sample])))
        digest = stream.close()
    if rows:
        write_file(path.with_suffix(".idx"), dali_index(members))
    else:
        path.unlink()  # DALI refuses a tar without samples
    entry = TarEntry(path.name, len(rows), stream.written, digest)
    _save_record(plan, tar, TarRecord(entry, set_aside, np.array(rows, SAMPLE)))


def _add_sample(stream: TarStream, plan: Plan, number: int, sample: int) -> list[Component]:
    """Append image, label and key of one sample; the image's bytes are the source's."""
    image = plan.source.read(sample)
    extension, height, width = read_header(image)
    if (height, width) != (plan.image_height, plan.image_width):
        wanted = f"{plan.image_height}x{plan.image_width}"
        raise SetAsideError(f"wrong size: got {height}x{width}, wanted {wanted}")
    label = b"%d" % plan.source.labels[sample]
    key = f'{{"key": {json.dumps(plan.source.key(sample))}}}'.encode()
    return [
        stream.add(f"{number:012d}", suffix, payload)
        for suffix, payload in ((extension, image), ("cls", label), ("json", key))
    ]


def _save_record(plan: Plan, tar: int, record: TarRecord) -> None:
    """Write the rows and then the record: once it is there, the tar and its index are whole on the disk."""
    path = _record_path(plan, tar)
    with written_whole(path.with_suffix(".npy")) as file:
        np.save(file, record.rows)
    raw = {"entry": asdict(record.entry), "set_aside": record.set_aside}
    write_file(path, json.dumps(raw).encode())


def _is_whole(plan: Plan, tar: int) -> bool:
    """Whether the tar has a record and its bytes are still those of the record."""
    if not _record_path(plan, tar).is_file():
        return False
    entry = read_record(plan, tar).entry
    path = plan.folder / entry.name
    return not entry.samples or (path.with_suffix(".idx").is_file() and file_sha256(path) == entry.sha256)


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
