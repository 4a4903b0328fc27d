"""Reading on a GPU against DALI's own WebDataset reader and Pillow; the engine's share; what a bad image costs.

The same tars, the same number of threads or workers, decoded and normalised batches on the device.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.reading.dali import HARDWARE_SHARE, Decoder, EncodedBatch
from pipeline.reading.tars import ShardSet
from tests.benchmarks.gpu.timing import Row, synchronise
from tests.benchmarks.results import median_seconds
from tests.benchmarks.shards import make_shards_of
from tests.benchmarks.test_reading import dali_reader, data_loader, ours

SHARES = (0.0, 0.25, 0.5, HARDWARE_SHARE, 0.8, 1.0)


@dataclass(frozen=True)
class Amount:
    """How much is read."""

    images: int = 20_000
    batch: int = 256
    batches: int = 60
    rounds: int = 5
    height: int = 112
    width: int = 96


def measure(folder: Path, device: torch.device, amount: Amount = Amount(), threads: int = 2) -> list[Row]:
    """A row for each reader, and one for each share of the engine."""
    shards = ShardSet(make_shards_of(folder, amount.images, 1, amount.height, amount.width))
    opened: dict[str, Iterator[torch.Tensor]] = {
        "spherescale, shuffled order": ours(shards, device, amount.batch, threads),
        "fn.readers.webdataset, in order": dali_reader(shards, device, amount.batch, threads),
        "webdataset + Pillow + DataLoader": data_loader(shards, amount.batch, threads),
    }
    opened |= {
        f"spherescale, {share:.0%} by the engine": ours(shards, device, amount.batch, threads, share)
        for share in SHARES
        if device.type == "cuda" and share != HARDWARE_SHARE
    }

    def read(source: Iterator[torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            for batch in itertools.islice(source, amount.batches):
                assert batch.to(device).shape == (amount.batch, 3, amount.height, amount.width)
            synchronise(device)

        return run

    # A contestant that is not read decodes a few batches ahead and then waits: no two work at the same time for long.
    seconds = median_seconds({name: read(source) for name, source in opened.items()}, amount.rounds)
    for source in opened.values():
        source.close()  # type: ignore[attr-defined]
    rate = {name: amount.batches * amount.batch / taken for name, taken in seconds.items()}
    first = rate["spherescale, shuffled order"]
    return [
        {"reading": f"{name}, {threads} threads", "images/s": value, "ours is": f"{first / value:.2f} ×"}
        for name, value in rate.items()
    ]


def bad_image_milliseconds(folder: Path, device: torch.device, amount: Amount = Amount()) -> dict[str, float]:
    """What a bad image adds: batches with one each, against the same batches without; and the first of a run."""
    shards = ShardSet(make_shards_of(folder, amount.images, 1, amount.height, amount.width))
    count = min(amount.batches, amount.images // amount.batch)
    good = [shards.read(np.arange(i * amount.batch, (i + 1) * amount.batch)) for i in range(count)]
    garbage = np.frombuffer(b"not an image at all", np.uint8)
    kinds = {"header": garbage, "data": _cut(good[0][0])}
    milliseconds: dict[str, float] = {}
    for kind, bad in kinds.items():
        broken = [[bad, *batch[1:]] if i else batch for i, batch in enumerate(good)]
        with_bad, without = (_times(batches, device, amount) for batches in (broken, good))
        milliseconds[f"the first with a broken {kind}"] = 1e3 * (with_bad[1] - float(np.median(without[3:])))
        milliseconds[f"each more with a broken {kind}"] = 1e3 * float(np.median(with_bad[3:]) - np.median(without[3:]))
    return milliseconds


def _times(batches: list[list[np.ndarray]], device: torch.device, amount: Amount) -> list[float]:
    """Seconds until each batch is there."""
    decoder = Decoder(amount.batch, amount.height, amount.width, device, threads=2)
    times, started = [], time.perf_counter()
    for _ in decoder.decode(EncodedBatch(batch) for batch in batches):
        synchronise(device)
        now = time.perf_counter()
        times.append(now - started)
        started = now
    return times


def _cut(image: np.ndarray) -> np.ndarray:
    """The first half, with an end marker: its header tells nothing."""
    return np.append(image[: len(image) // 2], np.array([0xFF, 0xD9], np.uint8))
