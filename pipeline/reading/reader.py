"""This rank's batches from any position on, decoded in the background while the step runs."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.reading.augmentation import parameters_of
from pipeline.reading.dali import Decoder, EncodedBatch
from pipeline.reading.handover import Handover
from pipeline.reading.order import Order
from pipeline.reading.tars import ShardSet

# The label of a sample that could not be decoded: the head leaves it out of the loss.
IGNORED = -1


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        step: the global batch's position in training.
        images_BCHW: float32 on the decoder's device, ``(x - 127.5) / 128``.
        labels_B: int64 on the same device; `IGNORED` if the image could not be decoded.
        ids_B: sample ids.
        undecodable: the ids of those that could not be decoded, on the host.
        found: those of them that the reader was not told to leave out.
    """

    step: int
    images_BCHW: torch.Tensor
    labels_B: torch.Tensor
    ids_B: np.ndarray[tuple[int], np.dtype[np.int64]]
    undecodable: tuple[int, ...] = ()
    found: tuple[int, ...] = ()


class Reader:
    """Rank r of N's batches, in order, from `first_step` on, without end: the caller stops.

    A thread reads and decodes up to `depth` batches ahead, on a GPU on a stream of its own: it never waits for what
    training has queued, nor training's host for it. The position is the reader's whole state: to resume,
    make a reader with another `first_step`.

    Args:
        shards, order: what to read, and in which order.
        decoder: decodes and augments; the augmentations' parameters are a hash of (seed, epoch, sample). Or the first
            step of each of several, from 0 on, which follow one another.
        rank, num_ranks: this rank's place.
        accumulation: micro-batches of a batch; num_ranks · accumulation divides the global batch.
        first_step: position of the first batch.
        depth: batches held ready.
        undecodable: ids of samples that are known to be so, and not decoded.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: Order,
        decoder: Decoder | Sequence[tuple[int, Decoder]],
        *,
        rank: int = 0,
        num_ranks: int = 1,
        accumulation: int = 1,
        first_step: int = 0,
        depth: int = 3,
        undecodable: Collection[int] = (),
    ) -> None:
        self.decode_failures = 0
        self._known = set(undecodable)
        self._shards, self._order = shards, order
        self._decoders = [(0, decoder)] if isinstance(decoder, Decoder) else list(decoder)
        self._place = rank, num_ranks, accumulation
        self._handover = Handover(self._decoders[0][1].device)
        # A batch with the event that says that it is made, or what ended the thread.
        self._ready: queue.Queue[tuple[Batch, Any] | BaseException] = queue.Queue(maxsize=depth)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(first_step,), name="reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch, for use on the current stream.

        Raises the error of the background thread, once; RuntimeError if that thread has ended, by an error or `close`.
        """
        while True:
            # Asked before the queue is: a thread that has ended puts nothing more, so a queue found empty stays empty.
            ended = not self._thread.is_alive()
            try:
                item = self._ready.get(block=not ended, timeout=1.0)
            except queue.Empty:
                if ended:
                    raise RuntimeError("reader: its thread has ended, wanted one that reads: make another") from None
                continue
            if isinstance(item, BaseException):
                raise item
            batch, made = item
            self._handover.take(made, batch.images_BCHW, batch.labels_B)
            return batch

    def leave_out(self, undecodable: Collection[int]) -> None:
        """Decode these samples no more, from the next batch on that is not under way yet."""
        self._known.update(undecodable)

    @property
    def ready(self) -> int:
        """Batches decoded and waiting; 0 means that training waits for data."""
        return self._ready.qsize()

    def close(self) -> None:
        """Stop the background thread and drop what it had ready."""
        self._stopping.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)  # make room, so that a blocked put can end
            except queue.Empty:
                continue
        self._thread.join()

    def _work(self, first_step: int) -> None:
        try:
            with self._handover.making():
                for batch in self._batches(first_step):
                    self._put((batch, self._handover.made()))
        except BaseException as error:
            self._put(error)

    def _put(self, item: tuple[Batch, Any] | BaseException) -> None:
        while not self._stopping.is_set():
            try:
                return self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
        return None

    def _batches(self, first_step: int) -> Iterator[Batch]:
        ends = [*(start for start, _ in self._decoders[1:]), math.inf]
        for (start, decoder), end in zip(self._decoders, ends, strict=True):
            if first_step < end:
                yield from self._decoded(decoder, max(start, first_step), end)

    def _decoded(self, decoder: Decoder, first_step: int, end: float) -> Iterator[Batch]:
        """The batches of the steps before `end`."""
        under_way: list[tuple[np.ndarray[tuple[int], np.dtype[np.int64]], tuple[int, ...]]] = []

        def encoded() -> Iterator[EncodedBatch]:
            step = first_step
            while step < end and not self._stopping.is_set():
                ids = self._order.rank_batch(step, *self._place)
                left_out = tuple(position for position, sample in enumerate(ids.tolist()) if sample in self._known)
                under_way.append((ids, left_out))
                epoch, size = self._order.epoch_of(step), decoder.shape[1:]
                parameters = parameters_of(decoder.augment, self._order.seed, epoch, ids, size)
                yield EncodedBatch(self._shards.read(ids), parameters, left_out)
                step += 1

        for step, decoded in enumerate(decoder.decode(encoded()), start=first_step):
            ids, left_out = under_way.pop(0)
            labels = self._shards.labels(ids)
            labels[~decoded.good] = IGNORED
            undecodable = tuple(int(ids[position]) for position in decoded.bad)
            found = tuple(int(ids[position]) for position in decoded.bad if position not in left_out)
            self.decode_failures += len(undecodable)
            labels_B = torch.from_numpy(labels).to(decoded.images.device)
            yield Batch(step, decoded.images, labels_B, ids, undecodable, found)
