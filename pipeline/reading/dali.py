"""JPEG bytes to normalised pixels with NVIDIA DALI: the only file that knows DALI.

On a GPU the decoder is ``mixed`` (Huffman on the host or nvJPEG's engine, the rest on the device); without
one the same graph runs on the CPU. Either way the result is RGB, augmented while training, then ``(x - 127.5) / 128``
as in SphereFace's solver (mean 127.5, scale 0.0078125).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types

from pipeline.reading.augment import Augmentation, Parameters

PREFETCH_DEPTH = 2  # batches that DALI itself keeps in flight; more only costs memory


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded images (``uint8`` vectors) and, for each of the decoder's augmentations, a row of parameters an image."""

    images: list[NDArray[Any]]
    parameters: tuple[Parameters, ...] = ()

    def part(self, start: int, stop: int) -> EncodedBatch:
        """The images from `start` to `stop`."""
        return EncodedBatch(self.images[start:stop], tuple(rows[start:stop] for rows in self.parameters))


@dataclass(frozen=True)
class DecodedBatch:
    """Pixels ``[B, 3, H, W]`` float32, and the positions that could not be decoded (zeros there)."""

    images: torch.Tensor
    bad: tuple[int, ...]

    @property
    def good(self) -> NDArray[np.bool_]:
        """Which images were decoded, [B]."""
        good = np.ones(len(self.images), dtype=bool)
        good[list(self.bad)] = False
        return good


@pipeline_def  # type: ignore[untyped-decorator]
def _decode_graph(source: Iterator[Any], on_gpu: bool, augment: Sequence[Augmentation]) -> Any:
    encoded, *parameters = fn.external_source(source=source, num_outputs=1 + len(augment), batch=True)
    # Before augmenting: an operator that crops or pads would hide an image of another size.
    size = fn.peek_image_shape(encoded, adjust_orientation=False)
    # An aligned crop means its stored pixels: an orientation tag is a leftover of the photograph.
    pixels = fn.decoders.image(
        encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB, adjust_orientation=False
    )
    for augmentation, rows in zip(augment, parameters, strict=True):
        pixels = augmentation.apply(fn, pixels, rows)
    normalised = fn.crop_mirror_normalize(pixels, mean=127.5, std=128.0, dtype=types.FLOAT, output_layout="CHW")
    return normalised, size


class Decoder:
    """Decodes batches of equally sized images, in order, setting aside what cannot be decoded.

    Args:
        batch_size: the most images in one batch; a batch may be shorter.
        height, width: the size that every image must have; another size counts as undecodable.
        device: where the pixels go; a CUDA device selects DALI's ``mixed`` decoder.
        threads: host threads that decode.
        augment: applied to the decoded images in this order, with the parameters that each batch brings.
    """

    def __init__(
        self,
        batch_size: int,
        height: int,
        width: int,
        device: torch.device,
        threads: int = 2,
        augment: Sequence[Augmentation] = (),
    ) -> None:
        self.batch_size = batch_size
        self.shape = (3, height, width)
        self.device = device
        self.threads = threads
        self.augment = augment

    def decode(self, batches: Iterable[EncodedBatch]) -> Iterator[DecodedBatch]:
        """Yield one `DecodedBatch` for each batch, in order, decoding ahead by `PREFETCH_DEPTH`.

        An image that DALI refuses, or whose size differs, costs only itself: its position is reported in
        ``bad``. DALI fails a whole pipeline on one bad image, so the batches in flight are then decoded
        again by bisection and the pipeline is started anew; both happen only when something is broken.

        Raises:
            ValueError: when an augmentation fails on an image that can be decoded, or changes its size.
        """
        remaining = iter(batches)
        while True:
            in_flight: deque[EncodedBatch] = deque()
            try:
                yield from self._stream(remaining, in_flight, self.augment)
            except _Undecodable:
                for batch in in_flight:
                    yield self._salvage(batch)
            else:
                return

    def _stream(
        self, batches: Iterator[EncodedBatch], in_flight: deque[EncodedBatch], augment: Sequence[Augmentation]
    ) -> Iterator[DecodedBatch]:
        """The fast path; `in_flight` holds what was taken from `batches` and not yet yielded."""

        def feed() -> Iterator[tuple[Any, ...]]:
            for batch in batches:
                if len(batch.parameters) != len(augment):
                    raise ValueError(
                        f"decoder: got parameters of {len(batch.parameters)} augmentations, wanted {len(augment)}"
                    )
                in_flight.append(batch)
                yield batch.images, *batch.parameters

        graph = self._graph(feed(), augment)
        while True:
            try:
                pixels, sizes = graph.run()
            except StopIteration:
                return
            except RuntimeError as error:
                raise _Undecodable from error
            if (np.asarray(sizes.as_tensor())[:, :2] != self.shape[1:]).any():
                raise _Undecodable
            images = self._to_torch(pixels)
            in_flight.popleft()
            yield DecodedBatch(images, bad=())

    def _salvage(self, batch: EncodedBatch) -> DecodedBatch:
        pixels = torch.zeros(len(batch.images), *self.shape, device=self.device)
        bad: list[int] = []

        def bisect(start: int, stop: int) -> None:
            part = batch.part(start, stop)
            try:
                pixels[start:stop] = self._alone(part, self.augment)
            except _Undecodable as error:
                if stop - start == 1:
                    self._check_augmentations(part, error)
                    bad.append(start)
                    return
                middle = (start + stop) // 2
                bisect(start, middle)
                bisect(middle, stop)

        bisect(0, len(batch.images))
        return DecodedBatch(pixels, tuple(bad))

    def _alone(self, batch: EncodedBatch, augment: Sequence[Augmentation]) -> torch.Tensor:
        (decoded,) = self._stream(iter([batch]), deque(), augment)
        return decoded.images

    def _check_augmentations(self, batch: EncodedBatch, error: _Undecodable) -> None:
        """Refuse an augmentation that fails; without this, all images of the run would count as undecodable."""
        if not self.augment:
            return
        try:
            self._alone(EncodedBatch(batch.images), ())
        except _Undecodable:
            return
        names = ", ".join(augmentation.name for augmentation in self.augment)
        reason = " ".join(str(error.__cause__).split())
        raise ValueError(f"data.augment: [{names}] failed on an image that can be decoded: {reason}") from error

    def _graph(self, source: Iterator[Any], augment: Sequence[Augmentation]) -> Any:
        on_gpu = self.device.type == "cuda"
        graph = _decode_graph(
            source,
            on_gpu,
            augment,
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=PREFETCH_DEPTH,
            exec_dynamic=True,  # an output stays valid while it is referred to: no copy of every batch
        )
        graph.build()
        return graph

    def _to_torch(self, output: Any) -> torch.Tensor:
        """The pixels [B, 3, H, W] of images that had the right size before they were augmented."""
        if not output.is_dense_tensor() or tuple(output.shape()[0]) != self.shape:
            names = ", ".join(augmentation.name for augmentation in self.augment)
            _, height, width = tuple(output.shape()[0])
            raise ValueError(
                f"data.augment: [{names}] gave images {height} high and {width} wide, "
                f"wanted {self.shape[1]} and {self.shape[2]} as before"
            )
        pixels = torch.utils.dlpack.from_dlpack(output.as_tensor())
        if pixels.is_cuda:
            # DALI reuses its memory in the order of its own stream, which torch does not know: a copy is torch's.
            pixels = pixels.clone()
            torch.cuda.current_stream(pixels.device).synchronize()
        return pixels


class _Undecodable(Exception):  # noqa: N818 - a signal between two methods, never shown
    """A batch in flight holds at least one image that DALI refuses, or that has another size."""
