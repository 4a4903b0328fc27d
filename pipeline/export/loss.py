"""What fewer bits cost: the exported files judged on the same pairs, each against the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from pipeline.evaluation.embedding.embed import files_of
from pipeline.evaluation.embedding.feeding import Fed, Given
from pipeline.evaluation.embedding.onnx import load_onnx
from pipeline.evaluation.embedding.source import How, ImageList, Network, image_files
from pipeline.evaluation.protocols.pairs import Pairs
from pipeline.evaluation.scoring.estimates import Estimate, accuracy_draws, difference, estimate
from pipeline.evaluation.scoring.verification import ScoredPairs, cosine_scores
from pipeline.evaluation.sets import VerificationSet
from pipeline.reading.dali import Decoder
from pipeline.reading.images import decode_images

RESAMPLES = 1000


@dataclass(frozen=True)
class Judged:
    """What an exported file reaches on a set: its accuracy, and how far that is above the first file's."""

    size_bytes: int
    accuracy: Estimate
    gain: Estimate | None


def judged(models: Mapping[str, bytes], chosen: VerificationSet, how: How) -> dict[str, Judged]:
    """Each model on the set, by name; ValueError if an image gives no features."""
    draws = {}
    for name, model in models.items():
        draws[name] = accuracy_draws(_scored(model, chosen.images, chosen.pairs, how), RESAMPLES)
    base = next(iter(draws.values()))
    found = {}
    for name, mine in draws.items():
        gain = None if mine is base else difference({0: mine}, {0: base})
        found[name] = Judged(len(models[name]), estimate({0: mine}), gain)
    return found


def inputs(model: bytes, images: ImageList, how: How) -> Iterator[torch.Tensor]:
    """Batches of the model's input for images that decode."""
    with TemporaryDirectory() as folder:
        network = _load(model, Path(folder))
    assert isinstance(network.module, Fed)
    decoder = Decoder(how.batch_size, *network.size, how.device, how.threads)
    for _, batch in decode_images(decoder, len(images), images.read):
        if batch.good.any():
            yield network.module.feeding.apply(batch.images[torch.from_numpy(batch.good)])


def _scored(model: bytes, folder: Path, pairs: Pairs, how: How) -> ScoredPairs:
    files, counts = files_of(folder, pairs)
    if (counts != 1).any():
        raise ValueError(f"{folder}: got folders of frames, wanted images: what precision costs is measured on those")
    with TemporaryDirectory() as place:
        network = _load(model, Path(place))
        images = image_files(folder, files)
        features = np.concatenate(list(network.features(images, how)))
    if not np.isfinite(features).all():
        bad = files[int(np.argmin(np.isfinite(features).all(axis=1)))]
        raise ValueError(f"{folder / bad}: got no features, wanted {network.wanted(images)}")
    return pairs.scored(cosine_scores(features, pairs.a, pairs.b))


def _load(model: bytes, folder: Path) -> Network:
    file = folder / "model.onnx"
    file.write_bytes(model)
    return load_onnx(file, Given(), torch.device("cpu"))
