"""Rendered people teach a network to tell apart rendered people whom it has not seen: a measure, with nobody's data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from pipeline.evaluation.scoring.angles import class_angles
from pipeline.evaluation.scoring.verification import ScoredPairs, cosine_scores, kfold_accuracy
from pipeline.head import ShardedHead
from pipeline.head.margins import MARGINS
from pipeline.optim.sgd import SGD
from pipeline.rendering import Model, Variation
from pipeline.rendering.sets.source import RenderedSource
from tests.renderer import needs_renderer

pytestmark = needs_renderer

PEOPLE, IMAGES, SMALLER = 32, 6, 4  # people to train on, and as many to test on
STEPS, BATCH, RATE, DIM = 200, 64, 0.05, 64


class Judged(NamedTuple):
    accuracy: float  # of pairs, each half of the people at the threshold of the other
    mean_cosine: float  # between the means of two people


def photographs(model: Model) -> torch.Tensor:
    """[2 · people · images, 3, 28, 28] of everybody, person by person, made four times smaller."""
    source = RenderedSource(model, 1, 0, 2 * PEOPLE, IMAGES, (112, 112), Variation())
    side = 112 // SMALLER
    pixels = [
        source.photo(sample).pixels.reshape(side, SMALLER, side, SMALLER, 3).mean((1, 3))
        for sample in range(len(source.labels))
    ]
    return (torch.from_numpy(np.stack(pixels)).float().permute(0, 3, 1, 2) - 127.5) / 128


def network() -> nn.Module:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for inside, outside in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inside, outside, 3, 2, 1), nn.PReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, DIM))


def train(backbone: nn.Module, images: torch.Tensor) -> None:
    """Softmax over the first half of the people."""
    sgd = SGD(steps=STEPS, learning_rate=RATE)
    head = ShardedHead(PEOPLE, DIM, MARGINS.parse("softmax"), seed=1, optimizer=sgd)
    optimizer = sgd.for_backbone([{"params": list(backbone.parameters()), "weight_decay": sgd.weight_decay}])
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        samples = torch.randint(0, PEOPLE * IMAGES, (BATCH,), generator=generator)
        optimizer.zero_grad()
        head(backbone(images[samples]), samples // IMAGES, step=step, samples_B=samples).loss.backward()
        optimizer.param_groups[0]["lr"] = RATE
        optimizer.step()
        head.update(RATE)


@torch.no_grad()
def judged(backbone: nn.Module, images: torch.Tensor) -> Judged:
    """On the other half: all same pairs and as many different ones, in two folds of people of their own."""
    features = backbone(images[PEOPLE * IMAGES :]).double().numpy()
    identity = np.repeat(np.arange(PEOPLE), IMAGES)
    a, b = np.triu_indices(len(identity), 1)
    inside = identity[a] % 2 == identity[b] % 2
    a, b = a[inside], b[inside]
    same = identity[a] == identity[b]
    others = np.random.default_rng(0).permutation(np.flatnonzero(~same))[: same.sum()]
    kept = np.concatenate([np.flatnonzero(same), others])
    a, b, same = a[kept], b[kept], same[kept]
    scores = cosine_scores(features, a, b)
    pairs = ScoredPairs.of(scores, same, identity[a] % 2, identity_a=identity[a], identity_b=identity[b])
    angles = class_angles(features, identity, [str(person) for person in range(PEOPLE)])
    return Judged(kfold_accuracy(pairs).mean, angles.mean_cosine)


def test_training_on_half_of_the_people_tells_the_other_half_apart(model: Model) -> None:
    images, backbone = photographs(model), network()
    before = judged(backbone, images)
    train(backbone, images)
    after = judged(backbone, images)
    assert before.accuracy < 0.65
    assert after.accuracy > before.accuracy + 0.05, (before, after)
    assert before.mean_cosine > 0.9
    assert after.mean_cosine < 0.5
