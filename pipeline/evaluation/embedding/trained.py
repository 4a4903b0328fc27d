"""A run folder's backbone, ready to embed: architecture from the recipe, weights from a checkpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pipeline.evaluation.embedding.source import Network
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.run.best import read_best
from pipeline.run.folder import RunFolder
from pipeline.run.whole import load_backbone
from pipeline.shards.format.manifest import Manifest


@dataclass(frozen=True)
class TrainedBackbone:
    """A backbone as it was after `step` steps, in evaluation mode.

    Attributes:
        name, embedding_dim: what the recipe calls it, and its output size D.
        image_size: height and width of the faces it was trained on.
        weights_sha256: digest of every parameter and buffer; equal digests give equal embeddings.
    """

    module: nn.Module
    name: str
    embedding_dim: int
    step: int
    image_size: tuple[int, int]
    weights_sha256: str

    @property
    def source(self) -> Network:
        """The backbone as a source of features."""
        return Network(self.name, self.weights_sha256, self.step, self.module, self.image_size)


# A checkpoint: after so many steps, the newest whole (None), or the one that RUN/best.json names.
Step = int | None | Literal["best"]


def load_trained(run: Path, step: Step) -> TrainedBackbone:
    """The backbone of the run folder `run` after `step` steps, on the CPU.

    Raises ValueError naming what is missing or does not fit.
    """
    if not RunFolder(run).recipe.is_file():
        raise ValueError(f"{run}: got no {RunFolder(run).recipe.name} in it, wanted the folder of a run")
    recipe = load_recipe(RunFolder(run).recipe)
    size = _image_size(run, recipe)
    number, weights = load_backbone(run, _best_of(run) if step == "best" else step)
    module = recipe.backbone.build(size)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{run}: step {number}: weights do not fit {recipe.backbone.name}: {reason}") from None
    return TrainedBackbone(
        module.eval(),
        recipe.backbone.name,
        recipe.backbone.embedding_dim,
        number,
        size,
        digest_of(weights),
    )


def _best_of(run: Path) -> int:
    """The step that RUN/best.json names."""
    best = read_best(run)
    if best is None:
        raise ValueError(f"{run}: step: got 'best' without {RunFolder(run).best}, wanted a recipe with evaluation.sets")
    return best.step


def digest_of(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, types and values, whatever the order of the dictionary."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _image_size(run: Path, recipe: Recipe) -> tuple[int, int]:
    """Height and width, from the run's record or, in its absence, from its shards."""
    facts = RunFolder(run).facts
    if facts.is_file():
        size = json.loads(facts.read_text()).get("image_size")
        if size:
            return int(size[0]), int(size[1])
    manifest = Manifest.load(recipe.data.shards)
    return manifest.image_height, manifest.image_width
