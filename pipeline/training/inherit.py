"""A new run from an old one with other identities: rows are matched by the identity's name.

Identities in both keep their rows; those of the old run alone are dropped; new ones start from the mean direction of
their images as the old backbone sees them (or at random), at the length that the kept rows have on average.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cluster.progress import progress_bar
from cluster.ranks.collectives import Group, num_ranks, rank_in, sum_over_ranks, world
from cluster.ranks.topology import split_range
from pipeline.backbones import Backbone
from pipeline.head import ShardedHead
from pipeline.reading.dali import Decoder
from pipeline.reading.images import decode_images
from pipeline.reading.tars import ShardSet
from pipeline.run.checkpoint import CheckpointError, read_backbone, read_meta, read_rows
from pipeline.run.folder import RunFolder
from pipeline.run.whole import whole_step
from pipeline.shards.format.names import read_identities
from pipeline.training.engine import Engine

logger = logging.getLogger(__name__)

Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Inherited:
    """How many identities kept their row, started anew, and were dropped."""

    kept: int
    new: int
    dropped: int

    def __str__(self) -> str:
        return f"{self.kept:,} identities keep their rows, {self.new:,} are new, {self.dropped:,} are dropped"


def inherit(
    engine: Engine,
    head: ShardedHead,
    backbone: Backbone,
    shards: ShardSet,
    decoder: Decoder,
    run: Path,
    step: int | None,
    new_rows: str,
    group: Group,
) -> Inherited:
    """Fill backbone and rows from another run's checkpoint; optimizer slots start at zero. All ranks together.

    Args:
        engine, head, backbone: of the new run; the last as its recipe has it.
        shards: of the new run: its identities, and the images of those that are new.
        decoder: for these images.
        run, step: the other run's folder and its checkpoint; None: the newest that is whole.
        new_rows: how identities start that the other run did not have, as in `pipeline.recipe.schema.Init`.
        group: all ranks, which share the verifying of the checkpoint.

    Raises:
        CheckpointError: when the other run cannot be read, is damaged, or its backbone is another.
    """
    step = whole_step(run, step, group)
    weights = read_backbone(RunFolder(run).checkpoint(step))
    saved = read_meta(RunFolder(run).checkpoint(step))
    if saved.embedding_dim != backbone.embedding_dim or weights.keys() != engine.parameters().keys():
        raise CheckpointError(
            f"init.run: {run}: another backbone: got {backbone.name} with embedding_dim {backbone.embedding_dim}, "
            f"wanted that of {RunFolder(run).recipe}"
        )
    engine.load(weights)
    old = old_identities(run, step)
    old_rows = match(old, read_identities(shards.folder, shards.manifest))
    inherit_rows(head, run, step, old_rows)
    if new_rows == "class_mean":
        class_mean_rows(head, engine.module, shards, old_rows, decoder, head.group)
    head.rows.loaded()
    kept = int((old_rows >= 0).sum())
    return Inherited(kept, len(old_rows) - kept, len(old) - kept)


def match(old: Sequence[str], new: Sequence[str]) -> Rows:
    """For each new identity its old row, or -1. Pure; names are compared as they are."""
    place = {name: row for row, name in enumerate(old)}
    return np.fromiter((place.get(name, -1) for name in new), np.int64, len(new))


def old_identities(run: Path, step: int) -> list[str]:
    """The names of a run's classes, in row order, as the run's folder keeps them.

    Raises:
        CheckpointError: when the list is missing or is not that of the checkpoint.
    """
    folder = RunFolder(run)
    path, wanted = folder.identities, read_meta(folder.checkpoint(step)).identities_sha256
    content = path.read_bytes() if path.is_file() else b""
    got = hashlib.sha256(content).hexdigest()
    if got != wanted:
        raise CheckpointError(f"{path}: got {'SHA-256 ' + got[:12] if content else 'no file'}, wanted {wanted[:12]}…")
    return content.decode().splitlines()


@torch.no_grad()
def inherit_rows(head: ShardedHead, run: Path, step: int, old_rows: Rows) -> None:
    """Fill this rank's rows whose identity the old run had, reading no more of its checkpoint than they span."""
    mine = old_rows[head.classes.start : head.classes.stop]
    kept = np.flatnonzero(mine >= 0)
    if not len(kept):
        return
    span = range(int(mine[kept].min()), int(mine[kept].max()) + 1)
    for first, rows in read_rows(RunFolder(run).checkpoint(step), span):
        inside = kept[(mine[kept] >= first) & (mine[kept] < first + len(rows))]
        head.weight_SD[torch.from_numpy(inside)] = rows[torch.from_numpy(mine[inside] - first)].to(
            head.weight_SD.device
        )


@torch.no_grad()
def class_mean_rows(
    head: ShardedHead, backbone: nn.Module, shards: ShardSet, old_rows: Rows, decoder: Decoder, group: Group
) -> None:
    """Start every new identity's row from the mean direction of its images; all ranks together.

    Each rank embeds its share of the new identities' images; the sums [new, D] are all-reduced. An identity whose
    images cannot be decoded keeps its random row.
    """
    new = np.flatnonzero(old_rows < 0)
    place = np.full(len(old_rows), -1, np.int64)
    place[new] = np.arange(len(new))
    device = head.weight_SD.device
    sums_ND = torch.zeros(len(new), head.weight_SD.shape[1], device=device)
    training = backbone.training
    backbone.eval()
    for images, labels, counts in _images_of(shards, place, decoder, group):
        directions_BD = F.normalize(backbone(images).float(), dim=1)[counts]
        sums_ND.index_add_(0, torch.from_numpy(place[labels]).to(device), directions_BD)
    backbone.train(training)
    sums_ND = sum_over_ranks(sums_ND, group)
    mine = np.flatnonzero((new >= head.classes.start) & (new < head.classes.stop))
    means = sums_ND[torch.from_numpy(mine).to(device)]
    rows = torch.from_numpy(new[mine] - head.classes.start).to(device)
    seen = means.norm(dim=1) > 0
    head.weight_SD[rows[seen]] = F.normalize(means[seen], dim=1) * _usual_length(head, old_rows, group)


def _images_of(
    shards: ShardSet, place: Rows, decoder: Decoder, group: Group
) -> Iterator[tuple[torch.Tensor, np.ndarray[Any, Any], torch.Tensor]]:
    """This rank's share of the images whose identity has a place, in as many batches as any other rank has.

    Yields images, the labels of those that count, and which these are: an image that cannot be decoded does not count,
    nor does one that fills up a share. (Under ZeRO 3 each forward pass is a collective.)
    """
    labels = shards.labels(np.arange(shards.manifest.samples))
    ids = np.flatnonzero(place[labels] >= 0)
    share = split_range(len(ids), num_ranks(group), rank_in(group))
    mine = ids[np.arange(share.start, share.start + -(-len(ids) // num_ranks(group))) % max(1, len(ids))]
    own = np.arange(len(mine)) < len(share)
    with progress_bar(len(mine), what="images of new identities", shown=rank_in(world()) == 0) as advance:
        for part, batch in decode_images(decoder, len(mine), lambda part: shards.read(mine[part])):
            counts = batch.good & own[part]
            yield batch.images, labels[mine[part][counts]], torch.from_numpy(counts).to(batch.images.device)
            advance(len(counts))


def _usual_length(head: ShardedHead, old_rows: Rows, group: Group) -> torch.Tensor:
    """Mean ‖w‖ of the kept rows over all ranks; of all rows if none was kept."""
    mine = torch.from_numpy(old_rows[head.classes.start : head.classes.stop] >= 0).to(head.weight_SD.device)
    lengths = head.weight_SD.norm(dim=1)
    totals = torch.stack([lengths[mine].sum(), mine.sum(), lengths.sum(), torch.ones_like(lengths).sum()])
    kept, count, every, rows = sum_over_ranks(totals, group)
    return kept / count if count > 0 else every / rows
