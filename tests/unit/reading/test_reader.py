"""The reader: the order's batches, decoded; bad input is named, and costs one sample or fails before the start."""

from __future__ import annotations

import itertools
import logging
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.reading.dali import Decoder
from pipeline.reading.order import Order, mirrored
from pipeline.reading.reader import IGNORED, Batch, Reader
from pipeline.reading.tars import MAPS, ShardSet
from pipeline.shards.manifest import ShardError
from tests.faces import ROOT, write_shards


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=5, images=6)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "shards"))


def decoder() -> Decoder:
    return Decoder(12, 32, 32, torch.device("cpu"), threads=1)


def take(shards: ShardSet, count: int, **options: int) -> list[Batch]:
    order = Order(shards.samples_per_tar, seed=1, global_batch=12, streams=2)
    reader = Reader(shards, order, decoder(), **options)  # type: ignore[arg-type]
    try:
        return [next(reader) for _ in range(count)]
    finally:
        reader.close()


def test_batches_are_the_orders_with_labels_and_flips(original: Path) -> None:
    shards = ShardSet(original)
    order = Order(shards.samples_per_tar, seed=1, global_batch=12, streams=2)
    names = (original / "identities.txt").read_text().splitlines()
    for step, batch in enumerate(take(shards, 5)):
        assert batch.step == step
        np.testing.assert_array_equal(batch.ids_B, order.batch(step))
        np.testing.assert_array_equal(batch.labels_B.numpy(), shards.labels(order.batch(step)))
        flips = mirrored(1, order.epoch_of(step), batch.ids_B)
        unflipped = torch.where(torch.tensor(flips)[:, None, None, None], batch.images_BCHW.flip(-1), batch.images_BCHW)
        # without the flip, the same sample has the same pixels in every epoch
        for image, sample in zip(unflipped, batch.ids_B, strict=True):
            assert torch.equal(image, plain_pixels(shards, int(sample)))
    assert len(names) == shards.manifest.identities


def plain_pixels(shards: ShardSet, sample: int) -> torch.Tensor:
    from pipeline.reading.dali import EncodedBatch

    encoded = EncodedBatch(shards.read([sample]), np.zeros(1, dtype=bool))
    return next(iter(decoder().decode([encoded]))).images[0]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_the_global_batch(original: Path, num_ranks: int) -> None:
    shards = ShardSet(original)
    whole = take(shards, 3)
    parts = [take(shards, 3, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    for step in range(3):
        assert torch.equal(torch.cat([part[step].images_BCHW for part in parts]), whole[step].images_BCHW)
        assert torch.equal(torch.cat([part[step].labels_B for part in parts]), whole[step].labels_B)


def test_a_later_position_needs_no_replay(original: Path) -> None:
    shards = ShardSet(original)
    (late,) = take(shards, 1, first_step=7)
    assert late.step == 7
    assert torch.equal(late.images_BCHW, take(shards, 8)[7].images_BCHW)


def overwrite(folder: Path, sample: int, content: bytes) -> None:
    row = np.load(folder / "index.npy")[sample]
    with (folder / "faces-000000.tar").open("r+b") as file:
        file.seek(int(row["offset"]))
        file.write(content[: int(row["size"])].ljust(int(row["size"]), b"\0"))


def test_a_corrupt_image_costs_one_sample_counted_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = ShardSet(folder)
    clean = take(shards, 2)
    victim = int(clean[0].ids_B[5])
    overwrite(folder, victim, b"")
    order = Order(shards.samples_per_tar, seed=1, global_batch=12, streams=2)
    reader = Reader(shards, order, decoder())
    with caplog.at_level(logging.WARNING):
        got = [next(reader) for _ in range(2)]
    reader.close()
    assert got[0].labels_B[5] == IGNORED
    keep = torch.arange(12) != 5
    assert torch.equal(got[0].labels_B[keep], clean[0].labels_B[keep])
    assert torch.equal(got[0].images_BCHW[keep], clean[0].images_BCHW[keep])
    assert torch.equal(got[1].images_BCHW, clean[1].images_BCHW)
    assert reader.decode_failures >= 1
    assert f"cannot decode sample {victim} (faces-000000.tar" in caplog.text
    assert "left out of step 0" in caplog.text


def test_closing_while_batches_wait_ends_the_thread(original: Path) -> None:
    shards = ShardSet(original)
    reader = Reader(shards, Order(shards.samples_per_tar, 1, 12), decoder(), depth=1)
    next(reader)
    reader.close()
    assert not reader._thread.is_alive()


def test_an_error_in_the_background_reaches_the_caller(original: Path) -> None:
    shards = ShardSet(original)
    wrong = Order((1000,), 1, 12)  # another set's order: ids that do not exist here
    reader = Reader(shards, wrong, decoder())
    with pytest.raises(IndexError):
        list(itertools.islice(reader, 5))
    reader.close()


def test_a_reader_that_has_ended_says_so_and_does_not_hang(original: Path) -> None:
    shards = ShardSet(original)
    failed = Reader(shards, Order((1000,), 1, 12), decoder())
    with pytest.raises(IndexError):
        list(itertools.islice(failed, 5))
    closed = Reader(shards, Order(shards.samples_per_tar, 1, 12), decoder())
    for reader in (failed, closed):
        reader.close()
        with pytest.raises(RuntimeError, match="reader: its thread has ended"):
            list(itertools.islice(reader, 10))


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """Room for the maps that are kept and ten files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    already = sum(1 for _ in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (already + MAPS + 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_descriptors")
def test_more_tars_than_descriptors(original: Path, tmp_path: Path) -> None:
    faces = original.parent / "faces"
    for copy in range(10):  # 300 samples, one a tar
        for person in faces.iterdir():
            shutil.copytree(person, tmp_path / "faces" / f"{person.name}-{copy}", copy_function=os.link)
    command = [sys.executable, ROOT / "stages" / "shard.py", tmp_path / "faces", tmp_path / "set"]
    subprocess.run([*command, "--samples-per-tar", "1"], check=True, capture_output=True)
    shards = ShardSet(tmp_path / "set")
    assert len(shards.samples_per_tar) > MAPS + 30
    (first,) = shards.read([0])
    kept = first.tobytes()
    for sample in range(shards.manifest.samples):
        (image,) = shards.read([sample])
        assert image[:2].tobytes() == b"\xff\xd8"
    assert first.tobytes() == kept  # still mapped, though it fell out long ago


def spoil_label(folder: Path) -> None:
    index = np.load(folder / "index.npy")
    index["label"][3] = 5
    np.save(folder / "index.npy", index)


SPOILS = {
    "missing index": (lambda f: (f / "index.npy").unlink(), r"index.npy: not found, wanted the index of 30 samples"),
    "short index": (lambda f: np.save(f / "index.npy", np.load(f / "index.npy")[:-1]), r"index.npy: got \(29,\)"),
    "not an index": (lambda f: (f / "index.npy").write_bytes(b"x" * 99), r"index.npy: not an index"),
    "missing tar": (lambda f: (f / "faces-000000.tar").unlink(), r"faces-000000.tar: missing tar, wanted \d+ bytes"),
    "truncated tar": (
        lambda f: (f / "faces-000000.tar").write_bytes((f / "faces-000000.tar").read_bytes()[:-600]),
        r"faces-000000.tar: got \d+ bytes, wanted \d+ as in manifest.json; truncated",
    ),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"manifest.json: not found"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_spoiled_shards_are_refused_at_opening(folder: Path, name: str) -> None:
    spoil, message = SPOILS[name]
    spoil(folder)
    with pytest.raises(ShardError, match=message):
        ShardSet(folder)


def test_a_label_outside_the_classes_is_refused_and_named(folder: Path) -> None:
    spoil_label(folder)
    shards = ShardSet(folder)
    with pytest.raises(ShardError, match=r"sample 3 in faces-000000.tar has label 5, wanted less than 5 identities"):
        shards.labels(np.arange(30))
