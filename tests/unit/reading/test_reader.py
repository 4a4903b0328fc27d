"""The reader: the order's batches, decoded and augmented; an undecodable sample is named, and costs itself."""

from __future__ import annotations

import itertools
import shutil
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.reading import reader as reader_module
from pipeline.reading.augment import Mirror
from pipeline.reading.augmentation import parameters_of
from pipeline.reading.dali import Decoder, EncodedBatch
from pipeline.reading.order import Order
from pipeline.reading.reader import IGNORED, Batch, Reader
from pipeline.reading.tars import ShardSet
from tests.faces import write_shards

AUGMENT = (Mirror(name="mirror"),)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=5, images=6)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "shards"))


def decoder() -> Decoder:
    return Decoder(12, 32, 32, torch.device("cpu"), threads=1, augment=AUGMENT)


def take(shards: ShardSet, count: int, **options: Any) -> list[Batch]:
    order = Order(shards.samples_per_tar, seed=1, global_batch=12, streams=2)
    reader = Reader(shards, order, decoder(), **options)
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
        (flips,) = parameters_of(AUGMENT, 1, order.epoch_of(step), batch.ids_B, (32, 32))
        unflipped = torch.where(
            torch.tensor(flips == 1)[:, None, None, None], batch.images_BCHW.flip(-1), batch.images_BCHW
        )
        # without the flip, the same sample has the same pixels in every epoch
        for image, sample in zip(unflipped, batch.ids_B, strict=True):
            assert torch.equal(image, plain_pixels(shards, int(sample)))
    assert len(names) == shards.manifest.identities


def plain_pixels(shards: ShardSet, sample: int) -> torch.Tensor:
    plain = Decoder(1, 32, 32, torch.device("cpu"), threads=1)
    return next(iter(plain.decode([EncodedBatch(shards.read([sample]))]))).images[0]


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


def test_a_corrupt_image_costs_one_sample_counted_and_found_until_it_is_left_out(folder: Path) -> None:
    shards = ShardSet(folder)
    clean = take(shards, 2)
    victim = int(clean[0].ids_B[5])
    overwrite(folder, victim, b"")
    order = Order(shards.samples_per_tar, seed=1, global_batch=12, streams=2)
    reader = Reader(shards, order, decoder())
    got = [next(reader) for _ in range(2)]
    reader.leave_out([victim])
    later = [next(reader) for _ in range(12)]
    reader.close()
    assert got[0].labels_B[5] == IGNORED
    keep = torch.arange(12) != 5
    assert torch.equal(got[0].labels_B[keep], clean[0].labels_B[keep])
    assert torch.equal(got[0].images_BCHW[keep], clean[0].images_BCHW[keep])
    assert torch.equal(got[1].images_BCHW, clean[1].images_BCHW)
    assert (got[0].undecodable, got[0].found, got[1].undecodable) == ((victim,), (victim,), ())
    met = [batch for batch in later if victim in batch.ids_B]
    assert len(met) > 2, "it must be met in later epochs"
    assert [batch.undecodable for batch in met] == [(victim,)] * len(met)
    assert met[-1].found == ()
    # known from the beginning: the same batches, and nothing to find
    knowing = Reader(shards, order, decoder(), undecodable=[victim])
    for batch in (*got, *later):
        again = next(knowing)
        assert torch.equal(again.images_BCHW, batch.images_BCHW)
        assert torch.equal(again.labels_B, batch.labels_B)
        assert (again.undecodable, again.found) == (batch.undecodable, ())
    knowing.close()
    assert knowing.decode_failures >= 1 + len(met)


def test_closing_while_batches_wait_ends_the_thread(original: Path) -> None:
    shards = ShardSet(original)
    before = set(threading.enumerate())
    reader = Reader(shards, Order(shards.samples_per_tar, 1, 12), decoder(), depth=1)
    (own,) = set(threading.enumerate()) - before
    next(reader)
    reader.close()
    assert not own.is_alive()


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


def test_batches_are_made_in_the_readers_thread_and_taken_in_the_callers(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, bool]] = []
    mine = threading.get_ident()

    def note(what: str) -> None:
        log.append((what, threading.get_ident() == mine))

    class Noting:
        def __init__(self, device: torch.device) -> None:
            assert device == torch.device("cpu")

        def making(self) -> AbstractContextManager[None]:
            note("making")
            return nullcontext()

        def made(self) -> int:
            note("made")
            return len([what for what, _ in log if what == "made"])

        def take(self, made: int, *tensors: torch.Tensor) -> None:
            assert [tensor.shape[0] for tensor in tensors] == [12, 12]
            note(f"take {made}")

    monkeypatch.setattr(reader_module, "Handover", Noting)
    take(ShardSet(original), 2)
    assert log[0] == ("making", False)
    assert all(not by_caller for what, by_caller in log if what == "made")
    assert [entry for entry in log if entry[0].startswith("take")] == [("take 1", True), ("take 2", True)]
