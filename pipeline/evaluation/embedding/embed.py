"""Faces to features as SphereFace tests them: the embeddings of the image and of its mirror, concatenated.

Liu et al., "SphereFace", CVPR 2017, section 4.1: "the final representation of a testing face is obtained by
concatenating its original face features and its horizontally flipped features", compared by cosine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.evaluation.protocols.pairs import Pairs, frames_of
from pipeline.evaluation.scoring.verification import FloatArray, IntArray


def embed(backbone: nn.Module, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Features `[B, 2D]` float32 on the CPU for each batch of pixels `[B, 3, H, W]`, in order.

    Runs in evaluation mode without gradients; the training mode of every submodule is as before when the iterator
    ends or is closed.
    """
    with _evaluating(backbone):
        for pixels in batches:
            # oneDNN's convolutions are 1.6 to 2 times faster with channels innermost; cuDNN chooses for itself.
            fast = torch.channels_last if pixels.device.type == "cpu" else torch.preserve_format
            images = pixels.to(memory_format=fast)
            # Not inference_mode: what ZeRO 3 gathers under it, a training step that follows cannot use.
            with torch.no_grad():
                features = torch.cat([backbone(images), backbone(images.flip(3))], dim=1)
            yield features.float().cpu()


def files_of(folder: Path, pairs: Pairs) -> tuple[list[str], IntArray]:
    """The image files `[F]` behind ``pairs.paths``, in order, and how many `[N]` of them each path stands for."""
    frames = [frames_of(folder, path) for path in pairs.paths]
    return list(chain.from_iterable(frames)), np.array(list(map(len, frames)))


def means_of_runs(rows_FD: NDArray[Any], counts: IntArray) -> FloatArray:
    """The mean `[N, D]` of each run of ``counts[i]`` consecutive rows, in float64."""
    starts = np.cumsum(counts) - counts
    return np.asarray(np.add.reduceat(rows_FD.astype(np.float64), starts, axis=0) / counts[:, None])


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    # Each submodule on its own: a frozen BatchNorm inside a training network must stay frozen afterwards.
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training
