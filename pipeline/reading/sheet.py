"""A picture of what training sees: some samples of a set, as they are and as augmented in several epochs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.reading.augmentation import Augmentation, parameters_of
from pipeline.reading.dali import Decoder, EncodedBatch
from pipeline.reading.tars import ShardSet

SAMPLES, EPOCHS = 12, 8


def augmented_sheet(shards: ShardSet, augment: Sequence[Augmentation], seed: int) -> NDArray[np.uint8]:
    """[12 H, 9 W, 3] levels: a row for each of 12 samples, evenly spaced; as it is, then as in epochs 0 to 7.

    An image that cannot be decoded is grey. Raises as `ShardSet.read`.
    """
    manifest = shards.manifest
    ids = np.unique(np.linspace(0, manifest.samples - 1, SAMPLES).astype(np.int64))
    size = manifest.image_height, manifest.image_width
    cpu, images = torch.device("cpu"), shards.read(ids)
    plain = Decoder(len(ids), *size, cpu).decode([EncodedBatch(images)])
    epochs = (EncodedBatch(images, parameters_of(augment, seed, epoch, ids, size)) for epoch in range(EPOCHS))
    changed = Decoder(len(ids), *size, cpu, augment=augment).decode(epochs)
    columns = torch.cat([batch.images for batch in (*plain, *changed)], dim=3)
    levels = (columns * 128 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.concatenate(levels.permute(0, 2, 3, 1).numpy(), axis=0)
