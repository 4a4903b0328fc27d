"""Faces to features as SphereFace tests them: the embeddings of the image and of its mirror, concatenated.

Liu et al., "SphereFace", CVPR 2017, section 4.1: "the final representation of a testing face is obtained by
concatenating its original face features and its horizontally flipped features", compared by cosine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from pipeline.evaluation.protocols.pairs import Pairs, frames_of
from pipeline.evaluation.scoring.verification import FloatArray, IntArray
from pipeline.reading.dali import Decoder
from pipeline.reading.images import Images, decode_images, read_image


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


def embed_files(
    backbone: nn.Module, folder: Path, paths: Sequence[str], decoder: Decoder, progress: bool = False
) -> Iterator[NDArray[np.float32]]:
    """Features `[B, 2D]` of the image files `paths` below `folder`, in order, a decoder's batch at a time.

    Raises ValueError naming the file when one cannot be read or decoded at the decoder's size, or when its features
    have no direction: a rate must not silently leave out a pair.
    """
    done = 0
    with tqdm(total=len(paths), unit=" images", smoothing=0.1, disable=None if progress else True) as bar:
        for batch in embed(backbone, _decoded(folder, paths, decoder)):
            features = batch.numpy()
            norms = np.linalg.norm(features, axis=1)
            broken = np.flatnonzero(~((norms > 0) & np.isfinite(norms)))
            if len(broken):
                raise ValueError(
                    f"{folder / paths[done + broken[0]]}: got features of norm {norms[broken[0]]},"
                    " wanted finite and above 0: the weights are broken"
                )
            bar.update(len(features))
            done += len(features)
            yield features


def embed_pairs(
    backbone: nn.Module, folder: Path, pairs: Pairs, decoder: Decoder, progress: bool = False
) -> FloatArray:
    """Features `[N, 2D]` of ``pairs.paths``, a folder of images (a video's frames) being the mean over its images."""
    files, counts = files_of(folder, pairs)
    every = np.concatenate(list(embed_files(backbone, folder, files, decoder, progress)))
    return means_of_runs(every, counts)


def files_of(folder: Path, pairs: Pairs) -> tuple[list[str], IntArray]:
    """The image files `[F]` behind ``pairs.paths``, in order, and how many `[N]` of them each path stands for."""
    frames = [frames_of(folder, path) for path in pairs.paths]
    return [frame for group in frames for frame in group], np.array([len(group) for group in frames])


def means_of_runs(rows_FD: NDArray[Any], counts: IntArray) -> FloatArray:
    """The mean `[N, D]` of each run of ``counts[i]`` consecutive rows, in float64."""
    starts = np.cumsum(counts) - counts
    return np.asarray(np.add.reduceat(rows_FD.astype(np.float64), starts, axis=0) / counts[:, None])


def _decoded(folder: Path, paths: Sequence[str], decoder: Decoder) -> Iterator[torch.Tensor]:
    _, height, width = decoder.shape
    for part, batch in decode_images(decoder, len(paths), partial(_read, folder, paths)):
        if batch.bad:
            raise ValueError(
                f"{folder / paths[part][batch.bad[0]]}: cannot be decoded, wanted an image"
                f" {height} high and {width} wide"
            )
        yield batch.images


def _read(folder: Path, paths: Sequence[str], part: slice) -> Images:
    return [read_image(folder / path) for path in paths[part]]


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
