"""From a folder of faces to shards: the bytes, and the tools that read them."""

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import webdataset

from pipeline.shards.format.index import open_index
from pipeline.shards.format.manifest import Manifest
from pipeline.shards.making.build import make_shards
from pipeline.shards.making.one_tar import Written
from pipeline.shards.making.plan import make_plan, permutation, samples_in
from pipeline.shards.making.progress import Endpoint, progress_of
from pipeline.shards.sources.folder import scan_folder
from tests.ports import free_port
from tests.shards import HEIGHT, WIDTH, extracted, made, plan_of, snapshot, write_people


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_people(tmp_path / "faces")


def test_every_image_is_in_the_tars_once_with_its_bytes_label_and_key(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = made(plan_of(faces, out))
    assert manifest == Manifest.load(out)
    assert (manifest.samples, manifest.identities, manifest.set_aside) == (28, 7, 0)
    assert (manifest.image_height, manifest.image_width) == (HEIGHT, WIDTH)
    assert [tar.samples for tar in manifest.tars] == [5, 6, 5, 6, 6]
    identities = (out / "identities.txt").read_text().splitlines()
    assert identities == [f"person {i}" for i in range(7)]

    listing = [p for folder in sorted(faces.iterdir()) for p in sorted(folder.iterdir())]
    wanted = [listing[i] for i in permutation(28, 1)]
    rows = open_index(out, manifest)
    for number, (path, row) in enumerate(zip(wanted, rows, strict=True)):
        tar_number = int(np.searchsorted(manifest.first_rows, number, side="right")) - 1
        tar = (out / manifest.tars[tar_number].name).read_bytes()
        assert tar[row["offset"] : row["offset"] + row["size"]] == path.read_bytes()
        assert identities[row["label"]] == path.parent.name
        extension = "png" if path.suffix == ".png" else "jpg"
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            members = {m.name: extracted(archive, m) for m in archive if m.name.startswith(f"{number:012d}")}
        assert members == {
            f"{number:012d}.{extension}": path.read_bytes(),
            f"{number:012d}.cls": str(row["label"]).encode(),
            f"{number:012d}.json": json.dumps({"key": f"{path.parent.name}/{path.name}"}).encode(),
        }


def test_digests_are_those_of_the_files(faces: Path, tmp_path: Path) -> None:
    manifest = made(plan_of(faces, tmp_path / "out"))
    files = snapshot(tmp_path / "out")
    for tar in manifest.tars:
        assert tar.bytes == len(files[tar.name])
        assert tar.sha256 == hashlib.sha256(files[tar.name]).hexdigest()
    assert manifest.identities_sha256 == hashlib.sha256(files["identities.txt"]).hexdigest()
    assert manifest.index_sha256 == hashlib.sha256(files["index.npy"]).hexdigest()


# webdataset leaves closing its tars to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_the_tars(faces: Path, tmp_path: Path) -> None:
    manifest = made(plan_of(faces, tmp_path / "out"))
    urls = [str(tmp_path / "out" / tar.name) for tar in manifest.tars]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert len(samples) == 28
    assert [s["cls"] for s in samples] == open_index(tmp_path / "out", manifest)["label"].tolist()
    for sample in samples:
        assert (faces / sample["json"]["key"]).read_bytes()


def test_dali_reads_the_tars_by_the_index_beside_them(faces: Path, tmp_path: Path) -> None:
    dali = pytest.importorskip("nvidia.dali")
    out = tmp_path / "out"
    manifest = made(plan_of(faces, out))

    @dali.pipeline_def(batch_size=28, num_threads=1, device_id=None)
    def pipeline() -> tuple[Any, Any]:
        image, label = dali.fn.readers.webdataset(
            paths=[str(out / tar.name) for tar in manifest.tars],
            index_paths=[str(out / tar.name.replace(".tar", ".idx")) for tar in manifest.tars],
            ext=["jpg;png", "cls"],
        )
        return dali.fn.decoders.image(image, device="cpu"), label

    pipe = pipeline()
    pipe.build()
    images, labels = pipe.run()
    assert images.shape() == [(HEIGHT, WIDTH, 3)] * 28
    got = [int(bytes(labels.at(i))) for i in range(28)]
    assert got == open_index(out, manifest)["label"].tolist()


@pytest.mark.skipif(importlib.util.find_spec("wds2idx") is None, reason="NVIDIA's wds2idx comes with DALI")
def test_the_dali_index_is_byte_for_byte_that_of_wds2idx(faces: Path, tmp_path: Path) -> None:
    manifest = made(plan_of(faces, tmp_path / "out"))
    for tar in manifest.tars:
        path = tmp_path / "out" / tar.name
        theirs = tmp_path / "theirs.idx"
        subprocess.run([sys.executable, "-m", "wds2idx", path, theirs], check=True, capture_output=True)
        assert path.with_suffix(".idx").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("workers", [2, 3])
def test_the_bytes_do_not_depend_on_workers_place_or_file_times(faces: Path, tmp_path: Path, workers: int) -> None:
    make_shards(plan_of(faces, tmp_path / "one"))
    elsewhere = tmp_path / "elsewhere" / "copy"
    shutil.copytree(faces, elsewhere, copy_function=shutil.copyfile)
    os.utime(next(elsewhere.rglob("*.JPG")), (1, 1))
    make_shards(plan_of(elsewhere, tmp_path / "many"), workers=workers)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "many")


def test_another_seed_gives_another_order_of_the_same_images(faces: Path, tmp_path: Path) -> None:
    first = made(plan_of(faces, tmp_path / "1"))
    second = made(plan_of(faces, tmp_path / "2", seed=2))
    assert first.digest != second.digest
    sizes = [sorted(open_index(tmp_path / n, m)["size"]) for n, m in (("1", first), ("2", second))]
    assert sizes[0] == sizes[1]


def test_batches_inside_a_tar_do_not_show(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (faces / "person 4" / "1.JPG").write_text("bad")
    make_shards(plan_of(faces, tmp_path / "one", per_tar=28))
    monkeypatch.setattr("pipeline.shards.making.one_tar.BATCH", 1)
    make_shards(plan_of(faces, tmp_path / "many", per_tar=28))
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "many")


def test_progress_counts_every_file(faces: Path, tmp_path: Path) -> None:
    (faces / "person 6" / "0.JPG").write_text("bad")
    for workers in (1, 2):
        seen: list[Written] = []
        manifest = made(plan_of(faces, tmp_path / str(workers)), workers=workers, progress=seen.append)
        counted = tuple(map(sum, zip(*seen, strict=True)))
        assert counted == (28, sum(tar.bytes for tar in manifest.tars), manifest.set_aside)
        assert counted[2] == 1


def test_progress_is_served_with_what_was_set_aside() -> None:
    port = free_port()
    with progress_of(40, Endpoint(port, "127.0.0.1", "faces", 2)) as progress:
        for written in (Written(30, 1000, 1), Written(9, 500, 2)):
            progress(written)
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            served = answer.read().decode()
    for name, value in (("samples_to_shard", 40), ("sharded_samples_total", 39), ("set_aside_samples_total", 3)):
        assert re.search(rf"^spherescale_{name}{{[^}}]*}} {value}(\.0)?$", served, re.MULTILINE), name


def test_tars_have_about_the_size_that_is_asked_for(faces: Path, tmp_path: Path) -> None:
    source = scan_folder(faces)
    (faces / "person 6" / "6.JPG").unlink()  # it is listed, and not counted
    per_tar = samples_in(source, 30_000)
    planned = make_plan(source, tmp_path / "out", seed=0, samples_per_tar=per_tar, size=None)
    sizes = [tar.bytes for tar in made(planned).tars]
    assert len(sizes) > 2
    assert all(20_000 <= size <= 30_000 + 20 * 512 for size in sizes)
    assert samples_in(source, 1) == 1
