"""What an augmentation is: parameters by hash, and the DALI operators that apply them to the samples it changes."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline import hashing
from pipeline.section import Choices, NamedSection

# Numbers in [0, 1): `uniform(P)` has shape [B, P], the same P numbers for a sample whatever batch it is in.
Uniform = Callable[[int], NDArray[np.float64]]

# A row for each sample of a batch: [B], or [B, P] when there are several parameters.
Parameters = NDArray[Any]

Size = tuple[int, int]  # height and width in pixels


class Augmentation(NamedSection, ABC):
    """A change to the training images, which differs from sample to sample and from epoch to epoch."""

    probability: float = Field(1.0, ge=0, le=1)
    """Share of the samples that are changed, the others stay as they are; which ones differs in each epoch."""

    @property
    def parts_batch(self) -> bool:
        """Whether the graph applies it to some of a batch's samples only, which costs nothing for the others."""
        return self.probability < 1

    @abstractmethod
    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """Parameters [B] or [B, P] of a batch's samples. A pure function; `uniform` is the only source of chance."""

    @abstractmethod
    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Add the operators to DALI's graph; called once, when the graph is built, for CPU and GPU alike.

        Args:
            fn: the module ``nvidia.dali.fn``. Given, since a recipe is read in places that do not load DALI.
            pixels: node of decoded images, [H, W, 3] uint8 RGB; the result must have the same height and width.
            parameters: node of each sample's parameters, a scalar or [P] (``parameters[0]`` is the first); float32,
                or int32 if `parameters` gave integers or booleans. A node in host memory, which is what DALI wants
                of an operator's arguments even on the GPU.
        """


AUGMENTATIONS: Choices[Augmentation] = Choices("augment")


def parameters_of(
    augment: Sequence[Augmentation], seed: int, epoch: int, ids: NDArray[np.int64], size: Size
) -> tuple[Parameters, ...]:
    """What a decoder is fed for samples `ids` [B] in an epoch: functions of (seed, epoch, sample) alone.

    Of each augmentation its parameters and, if it parts the batch, which samples it changes: bool [B]. They depend
    neither on the ranks, nor on the batch, nor on the other augmentations of the list.

    Raises:
        ValueError: when an augmentation does not give a row for each sample.
    """
    before: Counter[str] = Counter()
    found: list[Parameters] = []
    for augmentation in augment:
        # By name, not by place in the list: one that is added leaves what the others draw as it was.
        stream = f"{augmentation.name} {before[augmentation.name]}"
        before[augmentation.name] += 1
        rows = augmentation.parameters(partial(_uniform, stream, seed, epoch, ids), size)
        if rows.shape[:1] != ids.shape or rows.ndim > 2:
            raise ValueError(
                f"data.augment: {augmentation.name}: got parameters of shape {rows.shape}, "
                f"wanted ({len(ids)},) or ({len(ids)}, P)"
            )
        # The two types that DALI's operators take as arguments.
        found.append(rows.astype(np.float32 if rows.dtype.kind == "f" else np.int32))
        if augmentation.parts_batch:
            drawn = _uniform(f"{stream} chosen", seed, epoch, ids, 1)[:, 0]
            found.append(drawn < augmentation.probability)
    return tuple(found)


# Mirroring came before there were streams: it keeps the numbers that it drew then, so that old runs resume exactly.
_FIRST_STREAM = "mirror 0 0"


def _uniform(stream: str, seed: int, epoch: int, ids: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """[B, count] numbers in [0, 1). Each column starts at another of 2^64 places of one counter, which is hashed."""
    starts = [_start_of(f"{stream} {draw}") for draw in range(count)]
    counters = ids.astype(np.uint64)[:, None] + np.array(starts, dtype=np.uint64)
    return hashing.uniform(hashing.hash64(seed, epoch, counters))


def _start_of(stream: str) -> int:
    digest = hashlib.sha256(stream.encode()).digest()
    return 0 if stream == _FIRST_STREAM else int.from_bytes(digest[:8], "little")
