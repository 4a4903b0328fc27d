"""JPEG bytes to normalised pixels with NVIDIA DALI: the only file that knows DALI.

On a GPU the decoder is ``mixed`` (Huffman on the host or nvJPEG's engine, the rest on the device); without
one the same graph runs on the CPU. Either way the result is RGB, ``(x - 127.5) / 128`` as SphereFace's solver
has it (mean 127.5, scale 0.0078125), optionally mirrored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

PREFETCH_DEPTH = 2  # batches that DALI itself keeps under way; more only costs memory


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded images (``uint8`` vectors) and, for each, whether it is to be mirrored left to right."""

    images: list[np.ndarray[Any, Any]]
    mirror: np.ndarray[Any, Any]


@dataclass(frozen=True)
class DecodedBatch:
    """Pixels ``[B, 3, H, W]`` float32, and the positions that could not be decoded (zeros there)."""

    images: torch.Tensor
    bad: tuple[int, ...]


@pipeline_def  # type: ignore[untyped-decorator]
def _decode_graph(source: Iterator[Any], on_gpu: bool) -> Any:
    encoded, mirror = fn.external_source(source=source, num_outputs=2, batch=True)
    pixels = fn.decoders.image(
        encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB, adjust_orientation=False
    )
    return fn.crop_mirror_normalize(
        pixels, mirror=mirror, mean=127.5, std=128.0, dtype=types.FLOAT, output_layout="CHW"
    )


class Decoder:
    """Decodes batches of equally sized images, in order, setting aside what cannot be decoded.

    Args:
        batch_size: the most images in one batch; a batch may be shorter.
        height, width: the size that every image must have; another size counts as undecodable.
        device: where the pixels go; a CUDA device selects DALI's ``mixed`` decoder.
        threads: host threads that decode.
    """

    def __init__(self, batch_size: int, height: int, width: int, device: torch.device, threads: int = 2) -> None:
        self.batch_size = batch_size
        self.shape = (3, height, width)
        self.device = device
        self.threads = threads

    def decode(self, batches: Iterable[EncodedBatch]) -> Iterator[DecodedBatch]:
        """Yield one `DecodedBatch` for each batch, in order, decoding ahead by `PREFETCH_DEPTH`.

        An image that DALI refuses, or whose size differs, costs only itself: its position is reported in
        ``bad``. DALI fails a whole pipeline on one bad image, so the batches in flight are then decoded
        again by bisection and the pipeline is started anew; both happen only when something is broken.
        """
        remaining = iter(batches)
        while True:
            in_flight: deque[EncodedBatch] = deque()
            try:
                yield from self._stream(remaining, in_flight)
            except _Undecodable:
                for batch in in_flight:
                    yield self._salvage(batch)
            else:
                return

    def _stream(self, batches: Iterator[EncodedBatch], in_flight: deque[EncodedBatch]) -> Iterator[DecodedBatch]:
        """The fast path; `in_flight` holds what was taken from `batches` and not yet yielded."""

        def feed() -> Iterator[tuple[list[Any], Any]]:
            for batch in batches:
                in_flight.append(batch)
                yield batch.images, batch.mirror.astype(np.int32)

        graph = self._graph(feed())
        while True:
            try:
                (output,) = graph.run()
            except StopIteration:
                return
            except RuntimeError as error:
                raise _Undecodable from error
            pixels = self._to_torch(output)
            if pixels is None:
                raise _Undecodable
            in_flight.popleft()
            yield DecodedBatch(pixels, bad=())

    def _salvage(self, batch: EncodedBatch) -> DecodedBatch:
        pixels = torch.zeros(len(batch.images), *self.shape, device=self.device)
        bad: list[int] = []

        def bisect(start: int, stop: int) -> None:
            part = EncodedBatch(batch.images[start:stop], batch.mirror[start:stop])
            try:
                (decoded,) = self._stream(iter([part]), deque())
                pixels[start:stop] = decoded.images
            except _Undecodable:
                if stop - start == 1:
                    bad.append(start)
                    return
                middle = (start + stop) // 2
                bisect(start, middle)
                bisect(middle, stop)

        bisect(0, len(batch.images))
        return DecodedBatch(pixels, tuple(bad))

    def _graph(self, source: Iterator[Any]) -> Any:
        on_gpu = self.device.type == "cuda"
        graph = _decode_graph(
            source,
            on_gpu,
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=PREFETCH_DEPTH,
            exec_dynamic=True,  # an output is ours for as long as we hold it: no copy of every batch
        )
        graph.build()
        return graph

    def _to_torch(self, output: Any) -> torch.Tensor | None:
        """The pixels, or None when the images are not all of the wanted size."""
        if not output.is_dense_tensor() or tuple(output.shape()[0]) != self.shape:
            return None
        pixels = torch.utils.dlpack.from_dlpack(output.as_tensor())
        if pixels.is_cuda:
            # Decoded on DALI's stream and freed on none that torch knows: a copy, at the GPU's speed, is on ours.
            pixels = pixels.clone()
            torch.cuda.current_stream(pixels.device).synchronize()
        return pixels


class _Undecodable(Exception):  # noqa: N818 - a signal between two methods, never shown
    """A batch in flight holds at least one image that DALI refuses or that has another size."""
