"""Shapes of the Triton programs, and the block of classes that fits the L2: arithmetic, which a plan can ask too."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_FP32 = 4

# Of the L2, what a block may fill: the rest is for rows and state that pass through, and for the features.
_L2_SHARE = 0.7
# An H100's, for plans that are made where there is no GPU.
_L2_BYTES = 50 * 2**20


@dataclass(frozen=True)
class Tiles:
    """The shapes of the programs: none of them spills registers on sm_80, sm_90 or sm_100.

    Attributes:
        samples, classes, depth: of a tile of logits [samples, classes] over `depth` numbers of D at a time.
        warps, stages: of its programs.
        group: tiles of classes that are worked on side by side, for the L2.
        numbers: of the rows that one program normalises or finishes.
        product: of a tile of a float32 product, all three sides.
    """

    samples: int = 128
    classes: int = 128
    depth: int = 64
    warps: int = 8
    stages: int = 3
    group: int = 8
    numbers: int = 4096
    product: int = 64

    def rows(self, width: int) -> int:
        """Rows that one program normalises or finishes."""
        return max(1, min(self.numbers // width, 8))


TILES = Tiles()
# Three TF32 products keep twice the operands: smaller tiles.
TILES_FP32 = Tiles(samples=64, classes=64, depth=32, warps=4, stages=2)


def tiles_of(dtype: torch.dtype) -> Tiles:
    """The shapes for a type of the factors."""
    return TILES_FP32 if dtype == torch.float32 else TILES


def block_in_cache(batch: int, embedding_dim: int, dtype: torch.dtype, l2_bytes: int) -> int:
    """Classes of a block: as many as fit the L2 with all that is made of them, a multiple of 1,024, 64 Ki at most."""
    return min(max(int(_L2_SHARE * l2_bytes / class_bytes(batch, embedding_dim, dtype)) // 1024, 1), 64) * 1024


def class_bytes(batch: int, embedding_dim: int, dtype: torch.dtype) -> int:
    """What is made of a class in a backward pass: a row of factors, G numbers of softmax, a row of gradient."""
    width = padded_width(embedding_dim, tiles_of(dtype))
    return (width + batch) * dtype.itemsize + width * _FP32


def ceil_div(number: int, part: int) -> int:
    """How many parts hold the number."""
    return -(-number // part)


def padded_block(block: int, rows: int, tiles: Tiles) -> int:
    """A block no larger than the rows, in whole tiles."""
    return ceil_div(min(block, rows), tiles.classes) * tiles.classes


def padded_width(embedding_dim: int, tiles: Tiles) -> int:
    """P: the next power of two, a tile's depth at least."""
    return max(1 << (embedding_dim - 1).bit_length(), tiles.depth)


def device_l2_bytes() -> int:
    """Of this GPU; an H100's if there is none."""
    return torch.cuda.get_device_properties().L2_cache_size if torch.cuda.is_available() else _L2_BYTES
