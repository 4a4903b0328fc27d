"""Draws by sample: the same in any batch and after any resume, others from step to step and from module to module."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.backbones.draws import DropPath, draw
from pipeline.backbones.recompute import recompute
from pipeline.backbones.vit import ViT, ViTBackbone

CPU = torch.device("cpu")
SAMPLES = np.array([3, 41, 5, 2**40, 7, 3])


def dropped(seed: int, step: int, samples: np.ndarray, rate: float = 0.5) -> torch.Tensor:
    """What two layers make of ones, [B, 2]."""
    network = nn.ModuleList([DropPath(rate), nn.Linear(1, 1), DropPath(rate)])
    draw(network, seed, step, samples, CPU)
    return torch.cat([network[place](torch.ones(len(samples), 1)) for place in (0, 2)], dim=1)


def test_a_sample_is_dropped_alike_in_any_batch() -> None:
    whole = dropped(1, 2, SAMPLES)
    torch.rand(5)  # whatever else draws
    parts = [dropped(1, 2, part) for part in (SAMPLES[:1], SAMPLES[1:4], SAMPLES[4:])]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(whole[0], whole[5])


def test_what_is_kept_is_scaled_and_the_rate_is_the_rate() -> None:
    samples = np.arange(20_000)
    kept = dropped(1, 2, samples, rate=0.2)
    assert set(kept.unique().tolist()) == {0.0, 1.25}
    assert (kept == 0).double().mean(0).tolist() == pytest.approx([0.2, 0.2], abs=0.02)
    assert torch.equal(dropped(1, 2, samples, rate=0.0), torch.ones(20_000, 2))


def test_seeds_steps_and_modules_draw_independently() -> None:
    samples = np.arange(4_000)
    first = dropped(1, 2, samples)
    for other in (dropped(2, 2, samples), dropped(1, 3, samples), first.flip(1), dropped(1, 2, samples + 1)):
        assert (first == other).double().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.05)


def test_evaluation_drops_nothing() -> None:
    network = DropPath(0.5)
    draw(network, 1, 2, SAMPLES, CPU)
    assert torch.equal(network.eval()(torch.ones(6, 2, 3)), torch.ones(6, 2, 3))


def test_whole_samples_are_dropped() -> None:
    network = DropPath(0.5)
    draw(network, 1, 2, np.arange(64), CPU)
    kept = network(torch.ones(64, 2, 3)).flatten(1)
    assert torch.equal(kept, kept[:, :1].expand(-1, 6))


def gradients(recomputed: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    network = ViT(16, 3, 5, (20, 29), 9, drop_path=0.5, mask_ratio=0.5)
    if recomputed:
        recompute(ViTBackbone(name="vit_t").blocks(network))
    draw(network, 1, 2, SAMPLES, CPU)
    network(torch.randn(6, 3, 20, 29, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


def test_what_is_computed_again_is_dropped_again() -> None:
    plain, again = gradients(recomputed=False), gradients(recomputed=True)
    assert len(plain) > 30
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
