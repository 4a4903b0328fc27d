"""Reading tars: ours against DALI's own WebDataset reader, and against webdataset + Pillow + DataLoader.

All give normalised float32 batches of the same tars in torch tensors that outlive the next batch, with two decoding
threads or workers. DALI's reader goes through the tars in order; ours reads in its shuffled order, and must not pay
for that. Decoding alone is DALI's, of images that are in memory already, in one order. Ours reads without augmentation,
mirrored, and with each mix.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from torch.utils.data import DataLoader

from pipeline.reading.augment import Mirror
from pipeline.reading.augmentation import Augmentation
from pipeline.reading.dali import HARDWARE_SHARE, Decoder
from pipeline.reading.mixes import MIXES
from pipeline.reading.order import Order
from pipeline.reading.reader import Reader
from pipeline.reading.tars import ShardSet
from tests.benchmarks.results import write
from tests.benchmarks.shards import make_shards_of

PEOPLE, EACH, BATCH, BATCHES, ROUNDS = 200, 50, 256, 60, 7
AHEAD = 8  # batches; at most so many are held ready, ours by the reader and by DALI

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """10,000 JPEGs of 112x96, about 5 KB each, in tars of 1,000."""
    return ShardSet(make_shards_of(tmp_path_factory.mktemp("reading"), PEOPLE, EACH))


MIRROR = (Mirror(name="mirror"),)


def ours(
    shards: ShardSet,
    device: torch.device,
    batch: int,
    threads: int,
    hardware_share: float = HARDWARE_SHARE,
    augment: tuple[Augmentation, ...] = MIRROR,
) -> Iterator[torch.Tensor]:
    order = Order(shards.samples_per_tar, seed=0, global_batch=batch, streams=4)
    size = (shards.manifest.image_height, shards.manifest.image_width)
    decoder = Decoder(batch, *size, device, threads, augment, hardware_share)
    reader = Reader(shards, order, decoder)
    try:
        for one in reader:
            yield one.images_BCHW
    finally:
        reader.close()


def decoding_alone(shards: ShardSet, device: torch.device, batch: int, threads: int) -> Iterator[torch.Tensor]:
    on_gpu = device.type == "cuda"
    ids = np.arange(shards.manifest.samples)
    held = [[jpeg.copy() for jpeg in shards.read(ids[start : start + batch])] for start in range(0, len(ids), batch)]
    batches = itertools.cycle([one for one in held if len(one) == batch])

    @pipeline_def
    def graph() -> Any:
        jpeg = fn.external_source(source=batches, batch=True)
        pixels = fn.decoders.image(
            jpeg,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            jpeg_fancy_upsampling=True,
            use_fast_idct=False,
        )
        return fn.crop_mirror_normalize(pixels, mean=127.5, std=128.0, dtype=types.FLOAT, output_layout="CHW")

    yield from _outputs_of(graph, device, batch, threads)


def dali_reader(shards: ShardSet, device: torch.device, batch: int, threads: int) -> Iterator[torch.Tensor]:
    on_gpu = device.type == "cuda"

    @pipeline_def
    def graph() -> Any:
        tars = [str(shards.folder / tar.name) for tar in shards.manifest.tars]
        parts: Any = fn.readers.webdataset(
            paths=tars,
            index_paths=[tar.replace(".tar", ".idx") for tar in tars],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
        )
        jpeg, label = parts
        pixels = fn.decoders.image(jpeg, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
        mirror = fn.random.coin_flip(dtype=types.INT32)
        return fn.crop_mirror_normalize(
            pixels, mirror=mirror, mean=127.5, std=128.0, dtype=types.FLOAT, output_layout="CHW"
        ), label

    yield from _outputs_of(graph, device, batch, threads)


def _outputs_of(graph: Any, device: torch.device, batch: int, threads: int) -> Iterator[torch.Tensor]:
    """The first output of a graph, for ever."""
    running = graph(
        batch_size=batch,
        num_threads=threads,
        device_id=0 if device.type == "cuda" else None,
        prefetch_queue_depth=2,
        exec_dynamic=True,
    )
    running.build()
    while True:
        pixels, *_ = running.run()
        yield torch.utils.dlpack.from_dlpack(pixels.as_tensor())


def _pillow(sample: dict[str, Any]) -> torch.Tensor:
    pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"), np.float32)
    return torch.from_numpy((pixels - 127.5) / 128).permute(2, 0, 1).contiguous()


def data_loader(shards: ShardSet, batch: int, workers: int) -> Iterator[torch.Tensor]:
    tars = [str(shards.folder / tar.name) for tar in shards.manifest.tars]
    dataset = webdataset.WebDataset(tars, shardshuffle=False).repeat().map(_pillow)
    yield from DataLoader(dataset, batch_size=batch, num_workers=workers, multiprocessing_context="fork")


def seconds_alone(open_source: Callable[[], Iterator[torch.Tensor]]) -> float:
    """Seconds of `BATCHES` batches while no other contestant decodes ahead in the background.

    What it may hold ready by then is read first, untimed.
    """
    with contextlib.closing(open_source()) as source:  # type: ignore[type-var]
        for _ in range(AHEAD):
            next(source)
        start = time.perf_counter()
        for _ in range(BATCHES):
            assert next(source).shape == (BATCH, 3, 112, 96)
        return time.perf_counter() - start


def test_reading(shards: ShardSet) -> None:
    augmented = {"": MIRROR, ", not augmented": (), **{f", mirror and {mix}": MIRROR + MIXES[mix] for mix in MIXES}}
    contestants = {
        **{
            f"spherescale{what}": partial(ours, shards, DEVICE, BATCH, 2, augment=augment)
            for what, augment in augmented.items()
        },
        "decoding alone": partial(decoding_alone, shards, DEVICE, BATCH, 2),
        "fn.readers.webdataset": partial(dali_reader, shards, DEVICE, BATCH, 2),
        "DataLoader": partial(data_loader, shards, BATCH, 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, open_source in contestants.items():
            seconds[name].append(seconds_alone(open_source))
    rate = {name: BATCHES * BATCH / statistics.median(times) for name, times in seconds.items()}
    write(
        "reading",
        {
            "images_per_second": rate,
            "times_faster_than": {n: rate["spherescale"] / r for n, r in rate.items() if n != "spherescale"},
            "rounds": {name: [BATCHES * BATCH / one for one in times] for name, times in seconds.items()},
        },
    )
    assert rate["spherescale"] > rate["DataLoader"], "slower than Pillow"
