"""AdaFace: its limits are CosFace and ArcFace, and its running means are those of the paper, written out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest
import torch

from pipeline.head.margins import Observed, State, Target
from pipeline.head.margins.adaface import AdaFace
from pipeline.head.margins.arcface import ArcFace, CosFace

MARGIN = AdaFace(scale=10, margin=0.3, concentration=0.5, rate=0.1)


def target(norm: float) -> Target:
    """Pairs at angles from 0 to π; the embeddings all have one norm."""
    theta = torch.linspace(0.01, 3.13, 33, dtype=torch.float64)
    x = norm * torch.stack([theta.cos(), theta.sin()], dim=1)
    return Target(x, torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(len(theta), 2))


def state(mean: float, deviation: float) -> State:
    return {"mean": torch.tensor(mean), "deviation": torch.tensor(deviation - 1e-3)}


def test_an_image_of_average_quality_has_cosfaces_margin() -> None:
    got = MARGIN.target_logit(target(7.0), None, state(7.0, 2.0))
    torch.testing.assert_close(got, CosFace(scale=10, cosine=0.3).target_logit(target(7.0), None, {}))


def test_an_image_of_the_lowest_quality_has_arcfaces_margin() -> None:
    arcface = ArcFace(scale=10, angle=0.3).target_logit(target(1.0), None, {})
    for norm in (3.0, 1.0):  # two deviations below, and further
        got = MARGIN.target_logit(target(norm), None, state(7.0, 2.0))
        short_of_pi = slice(0, 29)  # θ + m is held at π, where ArcFace falls further
        torch.testing.assert_close(got[short_of_pi], arcface[short_of_pi])
        torch.testing.assert_close(got[-1].item(), -10.0)


def test_an_image_of_the_highest_quality_has_twice_the_margin_and_an_angle_back() -> None:
    got = MARGIN.target_logit(target(50.0), None, state(7.0, 2.0))
    theta = torch.arccos(target(50.0).cosine_G)
    torch.testing.assert_close(got, 10 * ((theta - 0.3).clamp(min=0).cos() - 0.6))


def test_norms_without_a_deviation_are_told_apart_as_in_the_authors_code() -> None:
    """Which adds 1e-3 to it: half of that above the mean is a quality of 0.5 · 0.5. Norms are held within bounds."""
    deviation = torch.tensor(0.0)
    for norm, mean, quality in ((7.0005, 7.0, 0.25), (1e-9, 2e-3, -0.5), (1e9, 99.9995, 0.25)):
        got = MARGIN.target_logit(
            target(norm), None, {"mean": torch.tensor(mean, dtype=torch.float64), "deviation": deviation}
        )
        theta = torch.arccos(target(norm).cosine_G)
        wanted = 10 * ((theta - 0.3 * quality).clamp(max=torch.pi).cos() - 0.3 * (1 + quality))
        torch.testing.assert_close(got[2:-2], wanted[2:-2], rtol=1e-4, atol=1e-4)


def test_the_quality_has_no_gradient() -> None:
    x = (torch.tensor([[3.0, 4.0]], dtype=torch.float64)).requires_grad_()
    rows = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    MARGIN.target_logit(Target(x, rows), None, state(7.0, 20.0)).sum().backward()
    assert x.grad is not None
    assert float((x.grad * x.detach()).sum()) == pytest.approx(0, abs=1e-12), "it would have one along x"


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Norms, of which some are out of bounds, and which samples have a label: two, one, all."""
    generator = torch.Generator().manual_seed(0)
    for valid in ([1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]):
        norms = torch.rand(5, generator=generator, dtype=torch.float64) * 30
        norms[2:4] = torch.tensor([1e-5, 300.0])
        yield norms, torch.tensor(valid, dtype=torch.float64)


def test_the_running_means_are_those_of_the_batches_written_out() -> None:
    now = {name: value.double() for name, value in MARGIN.initial_state().items()}
    mean, deviation = 20.0, 100.0
    for norms, valid in batches():
        labelled = norms[valid > 0].clamp(1e-3, 100).tolist()
        mean = 0.1 * sum(labelled) / len(labelled) + 0.9 * mean
        if len(labelled) > 1:
            deviation = 0.1 * statistics.stdev(labelled) + 0.9 * deviation
        now = MARGIN.next_state(now, Observed(norms * 0, norms, valid))
        assert float(now["mean"]) == pytest.approx(mean, rel=1e-12)
        assert float(now["deviation"]) == pytest.approx(deviation, rel=1e-12)
