"""Exact nearest neighbours by cosine over a gallery that need not fit in memory.

The gallery passes by once, block by block; of each block's products only what can still reach a probe's running top k
(or the highest scores of all) is kept. Memory is the probes, one gallery block and one tile of products, whatever the
gallery's size: 3,530 probes against 1,000,000 rows of 1,024 numbers stay below 1 GiB, gallery on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation.scoring.verification import IntArray

TILE = 4096  # probes a tile; with blocks of 8,192 gallery rows a tile of products is 128 MiB
BLOCK = 8192


@dataclass(frozen=True)
class Neighbours:
    """The outcome of a search of `P` probes.

    Attributes:
        scores_PK: the K highest cosines of each probe, falling; K is at most the gallery's size.
        index_PK: the gallery row of each.
        highest: the highest scores over all probes and rows, falling; as many as `nearest` was given.
        compared: how many pairs were scored, `P` times the gallery's size.
    """

    scores_PK: NDArray[np.float32]
    index_PK: IntArray
    highest: NDArray[np.float32]
    compared: int


def blocks_of(features_ND: NDArray[Any], rows: int = BLOCK) -> Iterator[NDArray[Any]]:
    """The array, which may be memory-mapped, as consecutive blocks of `rows` rows."""
    for start in range(0, len(features_ND), rows):
        yield features_ND[start : start + rows]


def regrouped(batches: Iterable[NDArray[Any]], rows: int = BLOCK) -> Iterator[NDArray[Any]]:
    """The same rows in blocks of at least `rows`, the last one excepted: small batches make slow products."""
    held: list[NDArray[Any]] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= rows:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def nearest(
    probes_PD: NDArray[Any],
    gallery: Iterable[NDArray[Any]],
    k: int,
    highest: int = 0,
    device: str | torch.device = "cpu",
) -> Neighbours:
    """Search the gallery, given as blocks of rows `[b, D]`, for the `k` most similar rows of every probe.

    Rows need not be normalised; products are float32; rows of equal score come in no particular order. A row of zeros,
    as a collapsed network gives it, is like nothing: its cosines are 0. Raises ValueError for a row that is not finite,
    a wrong width or an empty gallery.
    """
    if k < 1:
        raise ValueError(f"k: got {k}, wanted at least 1")
    probes = _unit(probes_PD, "probe", 0, device)
    tops = [_TopK(len(tile), k, device) for tile in probes.split(TILE)]
    overall = _Highest(highest, device)
    seen = 0
    for block in gallery:
        if block.shape[1:] != probes.shape[1:]:
            raise ValueError(f"gallery: got rows of shape {block.shape[1:]}, wanted {tuple(probes.shape[1:])}")
        rows = _unit(block, "gallery", seen, device)
        for tile, top in zip(probes.split(TILE), tops, strict=True):
            products = tile @ rows.T
            top.offer(products, seen)
            overall.offer(products)
        seen += len(rows)
    if not seen:
        raise ValueError("gallery: got no rows, wanted at least 1")
    return Neighbours(
        torch.cat([top.scores for top in tops])[:, :seen].cpu().numpy(),
        torch.cat([top.index for top in tops])[:, :seen].cpu().numpy(),
        overall.scores.cpu().numpy(),
        len(probes) * seen,
    )


class _TopK:
    """Running top k of each row of a tile, as columns of products pass by."""

    def __init__(self, rows: int, k: int, device: str | torch.device) -> None:
        self.scores = torch.full((rows, k), -torch.inf, device=device)
        self.index = torch.full((rows, k), -1, device=device)

    def offer(self, products: torch.Tensor, first_column: int) -> None:
        k = self.scores.shape[1]
        scores, index = products.topk(min(k, products.shape[1]), dim=1)
        self.scores, place = torch.cat([self.scores, scores], dim=1).topk(k, dim=1)
        self.index = torch.cat([self.index, index + first_column], dim=1).gather(1, place)


class _Highest:
    """Running highest `count` of all products, falling."""

    def __init__(self, count: int, device: str | torch.device) -> None:
        self.count = count
        self.scores = torch.empty(0, device=device)

    def offer(self, products: torch.Tensor) -> None:
        if not self.count:
            return
        # Once full, hardly any product passes the lowest kept, and the cost is one comparison each.
        full = len(self.scores) == self.count
        candidates = products[products > self.scores[-1]] if full else products.flatten()
        kept = torch.cat([self.scores, candidates])
        self.scores = kept.topk(min(self.count, len(kept))).values


def _unit(rows: NDArray[Any], kind: str, first: int, device: str | torch.device) -> torch.Tensor:
    tensor = torch.tensor(np.asarray(rows, np.float32), device=device)
    norms = torch.linalg.vector_norm(tensor, dim=1, keepdim=True)
    broken = torch.nonzero(~norms.isfinite())
    if len(broken):
        row = int(broken[0, 0])
        raise ValueError(f"{kind}: row {first + row} has norm {norms[row].item()}, wanted a finite one")
    return tensor / torch.where(norms > 0, norms, 1)
