"""JPEG and PNG bytes to normalised pixels with NVIDIA DALI: the only file that knows DALI.

On a GPU the decoder is ``mixed`` (Huffman on the host or nvJPEG's engine, the rest on the device); without
one the same graph runs on the CPU. Either way the result is RGB, augmented while training, then ``(x - 127.5) / 128``
as in SphereFace's solver (mean 127.5, scale 0.0078125).

The same pixels everywhere. On the CPU DALI decodes with libjpeg-turbo, its accurate DCT and its interpolated chroma:
what Pillow gives, bit for bit (CMYK, which it converts with another rounding, within 1 level of 255). nvJPEG repeats
chroma unless it is asked to interpolate too, and is then off by up to 21 levels.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from pipeline.reading.augment import Mirror
from pipeline.reading.augmentation import Augmentation
from pipeline.reading.salvage import DecodedBatch, EncodedBatch, Salvage, UndecodableError, encoded_black

__all__ = ["HARDWARE_SHARE", "DecodedBatch", "Decoder", "EncodedBatch"]

PREFETCH_DEPTH = 2  # batches that DALI itself keeps in flight; more only costs memory

# Share of a batch's JPEGs that a GPU's own JPEG engine decodes (A100, H100 and later have one), the rest by its cores.
# DALI's default. `make bench-gpu` times others; which is the fastest has not been measured yet.
HARDWARE_SHARE = 0.65


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def _decode_graph(source: Any, on_gpu: bool, hardware_share: float, augment: Sequence[Augmentation]) -> Any:
    serial, encoded, *fed = fn.external_source(source=source, num_outputs=2 + _inputs_of(augment), batch=True)
    # Before augmenting: an operator that crops or pads would hide an image of another size.
    size = fn.peek_image_shape(encoded, adjust_orientation=False)
    # An aligned crop means its stored pixels: an orientation tag is a leftover of the photograph.
    pixels = fn.decoders.image(
        encoded,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        use_fast_idct=False,
        hw_decoder_load=hardware_share,
    )
    mirror: Any = 0
    for place, augmentation in enumerate(augment, start=1):
        rows = fed.pop(0)
        if isinstance(augmentation, Mirror) and place == len(augment):
            mirror = rows  # what normalises flips as well, for nothing
            continue
        if augmentation.parts_batch:
            chosen = fed.pop(0)
            # A condition on a node: DALI parts the batch by it, and joins it again.
            if chosen:
                pixels = augmentation.apply(fn, pixels, rows)
        else:
            pixels = augmentation.apply(fn, pixels, rows)
    normalised = fn.crop_mirror_normalize(
        pixels, mirror=mirror, mean=127.5, std=128.0, dtype=types.FLOAT, output_layout="CHW"
    )
    return normalised, size, serial


class Decoder:
    """Decodes batches of equally sized images, in order, setting aside what cannot be decoded.

    Args:
        batch_size: the most images in one batch; a batch may be shorter.
        height, width: the size that every image must have; another size counts as undecodable.
        device: where the pixels go; a CUDA device selects DALI's ``mixed`` decoder.
        threads: host threads that decode.
        augment: applied to the decoded images in this order, with the parameters that each batch brings.
        hardware_share: of the JPEGs, by the GPU's own JPEG engine; see `HARDWARE_SHARE`.
    """

    def __init__(
        self,
        batch_size: int,
        height: int,
        width: int,
        device: torch.device,
        threads: int = 2,
        augment: Sequence[Augmentation] = (),
        hardware_share: float = HARDWARE_SHARE,
    ) -> None:
        self.batch_size = batch_size
        self.shape = (3, height, width)
        self.device = device
        self.threads = threads
        self.augment = augment
        self.hardware_share = hardware_share

    def decode(self, batches: Iterable[EncodedBatch]) -> Iterator[DecodedBatch]:
        """Yield one `DecodedBatch` for each batch, in order, decoding ahead by `PREFETCH_DEPTH`.

        An image that DALI refuses, or whose size differs, costs only itself: its position is reported in ``bad``, with
        those of the batch's ``left_out``, which cost nothing. One
        whose header is odd is decoded alone, by a second graph, which is built when it is first needed; the batch has
        a black image in its place. DALI refuses a batch as a whole: the images of such a batch are all decoded alone,
        while the batches in flight stay in flight.

        Raises:
            ValueError: when an augmentation fails on an image that can be decoded, or changes its size.
        """
        remaining = iter(batches)
        plain = _OneByOne(self, ())
        augmented = _OneByOne(self, self.augment) if self.augment else plain
        salvage = Salvage(self.shape, self.augment, plain.decode, augmented.decode)
        while True:
            in_flight: deque[_Sent] = deque()
            try:
                yield from self._stream(self._feed(remaining, in_flight, salvage), in_flight, salvage)
            except _BrokenGraphError:
                remaining = itertools.chain([sent.batch for sent in in_flight], remaining)
            else:
                return

    def _feed(
        self, batches: Iterator[EncodedBatch], in_flight: deque[_Sent], salvage: Salvage
    ) -> Iterator[tuple[Any, ...]]:
        """What a graph is given of each batch, a serial number first; `in_flight` gets what is taken from `batches`."""
        for serial, batch in enumerate(batches):
            if len(batch.parameters) != _inputs_of(self.augment):
                raise ValueError(
                    f"decoder: got {len(batch.parameters)} arrays of parameters, wanted {_inputs_of(self.augment)}: "
                    "what parameters_of gives for its augmentations"
                )
            doubtful = salvage.doubtful(batch)
            in_flight.append(_Sent(batch, doubtful))
            yield _fed(serial, salvage.without(batch, doubtful))

    def _stream(
        self, source: Iterator[tuple[Any, ...]], in_flight: deque[_Sent], salvage: Salvage
    ) -> Iterator[DecodedBatch]:
        """Take from `in_flight` what is yielded.

        A graph that has failed takes the next batch, but DALI does not promise that. It is broken, and must be
        replaced, when what it gives is of another batch, or when it has failed and nothing was bad.
        """
        graph = self.graph(source, self.augment, PREFETCH_DEPTH)
        for serial in itertools.count():
            try:
                pixels, sizes, got = graph.run()
            except StopIteration:
                return
            except RuntimeError:
                if not in_flight:  # it failed before it took a batch: if it is new, another would fail as well
                    if serial == 0:
                        raise
                    raise _BrokenGraphError from None
                batch = in_flight.popleft().batch
                decoded = self._alone(batch, salvage)
                yield decoded
                if decoded.bad == batch.left_out:
                    raise _BrokenGraphError from None
                continue
            if _serial_of(got) != serial:
                raise _BrokenGraphError
            sent = in_flight.popleft()
            if self.wrong_sizes(sizes):
                yield self._alone(sent.batch, salvage)
            elif sent.doubtful or sent.batch.left_out:
                yield salvage.decode(sent.batch, sent.doubtful, self.to_torch(pixels).clone())
            else:
                yield DecodedBatch(self.to_torch(pixels), bad=())

    def _alone(self, batch: EncodedBatch, salvage: Salvage) -> DecodedBatch:
        """All images of a batch but those left out, decoded one after another."""
        pixels = torch.zeros(len(batch.images), *self.shape, device=self.device)
        positions = [position for position in range(len(batch.images)) if position not in batch.left_out]
        return salvage.decode(batch, positions, pixels)

    def graph(self, source: Any, augment: Sequence[Augmentation], prefetch: int) -> Any:
        """A DALI pipeline that gives pixels, sizes and serial number of each batch that `source` gives."""
        on_gpu = self.device.type == "cuda"
        graph = _decode_graph(
            source,
            on_gpu,
            self.hardware_share,
            augment,
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=prefetch,
            exec_dynamic=True,  # an output stays valid while it is referred to: no copy of every batch
        )
        graph.build()
        return graph

    def wrong_sizes(self, sizes: Any) -> list[int]:
        """Positions of the images that have another size than they should."""
        wrong = (np.asarray(sizes.as_tensor())[:, :2] != self.shape[1:]).any(axis=1)
        return [int(position) for position in np.flatnonzero(wrong)]

    def to_torch(self, output: Any) -> torch.Tensor:
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


@dataclass(frozen=True)
class _Sent:
    """A batch as it came, and which of its images the graph was not given."""

    batch: EncodedBatch
    doubtful: list[int]


class _OneByOne:
    """A graph that decodes a batch at a time, as a whole or not at all; it is built when first needed."""

    def __init__(self, decoder: Decoder, augment: Sequence[Augmentation]) -> None:
        self._decoder, self._augment = decoder, augment
        self._run: Callable[[], Any] | None = None
        self._next: list[tuple[Any, ...]] = []
        self._serials = itertools.count()

    def decode(self, batch: EncodedBatch) -> torch.Tensor:
        """Pixels [B, 3, H, W].

        Raises:
            UndecodableError: if any of the images is undecodable, or has another size.
        """
        while True:
            fresh = self._run is None
            try:
                pixels, sizes = self._once(batch)
            except RuntimeError as error:
                if not self._still_works(batch):
                    self._run = None
                # The batch is at fault if the graph is not: it was new, or it decodes another image.
                if fresh or self._run is not None:
                    raise UndecodableError from error
                continue
            if self._decoder.wrong_sizes(sizes):
                raise UndecodableError
            return self._decoder.to_torch(pixels)

    def _once(self, batch: EncodedBatch) -> tuple[Any, Any]:
        """Pixels and sizes as DALI gives them; RuntimeError if it fails, or gives those of another batch."""
        if self._run is None:
            # A lambda, since DALI cannot inspect a built-in method.
            self._run = self._decoder.graph(lambda: self._next.pop(), self._augment, 1).run  # noqa: PLW0108
        self._next[:] = [_fed(serial := next(self._serials), batch)]
        pixels, sizes, got = self._run()
        if _serial_of(got) != serial:
            raise RuntimeError("the decoder gave another batch")
        return pixels, sizes

    def _still_works(self, failed: EncodedBatch) -> bool:
        """Whether the graph decodes a black image, augmented as the first of those that it failed on."""
        try:
            self._once(EncodedBatch([encoded_black(self._decoder.shape)], failed.take([0]).parameters))
        except RuntimeError:
            return False
        return True


def _inputs_of(augment: Sequence[Augmentation]) -> int:
    """Arrays that are fed for augmentations: parameters and, of some, whom they change, as `parameters_of` has them."""
    return sum(2 if augmentation.parts_batch else 1 for augmentation in augment)


def _fed(serial: int, batch: EncodedBatch) -> tuple[Any, ...]:
    return np.full(len(batch.images), serial, np.int64), batch.images, *batch.parameters


def _serial_of(output: Any) -> int:
    return int(np.asarray(output.as_tensor())[0])


class _BrokenGraphError(Exception):
    """A graph has failed, and not because of an image: it must be built anew."""
