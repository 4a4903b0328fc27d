"""What the tests of sharding share: images, sources of them, and what lies in a folder afterwards."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.shards.format.manifest import Manifest
from pipeline.shards.images import SetAsideError
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.plan import Plan, make_plan
from pipeline.shards.sources import Source
from pipeline.shards.sources.folder import scan_folder

HEIGHT, WIDTH = 20, 16


def noise(number: int, kind: str = "JPEG", height: int = 8, width: int = 8) -> bytes:
    """An encoded image of noise, of its number alone."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_people(root: Path) -> Path:
    """7 people with 1 to 7 images of `HEIGHT` x `WIDTH`: 28, one of them a PNG."""
    for person in range(7):
        folder = root / f"person {person}"
        folder.mkdir(parents=True)
        for number in range(person + 1):
            kind = "PNG" if (person, number) == (3, 1) else "JPEG"
            path = folder / f"{number}.{'png' if kind == 'PNG' else 'JPG'}"
            path.write_bytes(noise(10 * person + number, kind, HEIGHT, WIDTH))
    return root


def write_ten_faces(root: Path) -> None:
    """Ten images of three people; as whole paths, `ann smith/...` would stand before `ann/...`."""
    for number in range(10):
        folder = root / ("ann", "ann smith", "bob")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(noise(number))


def write_parquet(folder: Path) -> None:
    """The same ten images as `folder/a.parquet`, in groups of four rows; a test without pyarrow is skipped."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir(exist_ok=True)
    table = arrow.table({"image": [noise(n) for n in range(10)], "label": [n % 3 for n in range(10)]})
    parquet.write_table(table, folder / "a.parquet", row_group_size=4)


def make_set_of(root: Path, name: str, people: dict[str, int], start: int = 0) -> Path:
    """The set `root/name` of so many images of each person, four in a tar; each fifth from `start` is a PNG."""
    for person, images in people.items():
        (root / f"{name}_faces" / person).mkdir(parents=True)
        for number in range(images):
            start += 1
            image = noise(start, "JPEG" if start % 5 else "PNG")
            (root / f"{name}_faces" / person / f"{number}.jpg").write_bytes(image)
    made(plan_of(root / f"{name}_faces", root / name, seed=0, per_tar=4))
    return root / name


def plan_of(root: Path, out: Path, seed: int = 1, per_tar: int = 6, size: tuple[int, int] | None = None) -> Plan:
    """Identity folders to tars."""
    return make_plan(scan_folder(root), out, seed=seed, samples_per_tar=per_tar, size=size)


def made(plan: Plan, **options: Any) -> Manifest:
    """The finished set of a plan."""
    manifest = make_shards(plan, **options)
    assert manifest is not None
    return manifest


def write_tar_of(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """Write a tar of these names and contents."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def extracted(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of one file of a tar."""
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file in a folder and below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rejected(folder: Path) -> dict[str, str]:
    """What a set's `rejected.tsv` says."""
    header, *lines = (folder / "rejected.tsv").read_text().splitlines()
    assert header == "path\treason"
    assert lines == sorted(lines)
    return dict(line.split("\t") for line in lines)


def contents(source: Source) -> dict[str, tuple[str, bytes]]:
    """Key -> identity and bytes of what can be read."""
    found = {}
    for sample in range(len(source.labels)):
        try:
            found[source.key(sample)] = source.identities[source.labels[sample]], source.read(sample)
        except SetAsideError:
            continue
    return found
