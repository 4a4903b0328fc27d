"""ψ against the paper's piecewise definition and the authors' Caffe formulas."""

import math

import pytest
import torch

from pipeline.head.margins.angular import cosine, extended_cosine, psi, sine_ratio

MULTIPLIERS = [1.0, 2.0, 3.0, 4.0, 1.5, 2.7]


def psi_by_definition(theta: float, m: float) -> float:
    k = 0
    while theta > (k + 1) * math.pi / m:
        k += 1
    return (-1) ** k * math.cos(m * theta) - 2 * k


@pytest.mark.parametrize("m", MULTIPLIERS)
def test_psi_is_the_papers_piecewise_function(m: float) -> None:
    thetas = [math.pi * i / 997 for i in range(1, 997)]
    got = psi(torch.tensor([math.cos(t) for t in thetas], dtype=torch.float64), m)
    want = torch.tensor([psi_by_definition(t, m) for t in thetas], dtype=torch.float64)
    torch.testing.assert_close(got, want, atol=1e-9, rtol=0)


@pytest.mark.parametrize("m", MULTIPLIERS)
def test_psi_is_monotone_and_continuous_from_pole_to_pole(m: float) -> None:
    theta = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)
    values = psi(torch.cos(theta).clamp(-1, 1), m)
    steps = values.diff()
    assert (steps <= 1e-9).all()
    assert steps.abs().max() <= m * math.pi / 20_000 * 1.01, "a jump"
    assert values[0] == 1


@pytest.mark.parametrize("m", MULTIPLIERS)
def test_psi_never_exceeds_cosine(m: float) -> None:
    cosines = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    assert (psi(cosines, m) <= cosines + 1e-12).all()


def test_m_one_is_the_cosine() -> None:
    cosines = torch.linspace(-1, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(psi(cosines, 1.0), cosines, atol=1e-12, rtol=0)


def caffe(cosine: float, m: int) -> float:
    """The polynomials and sign tricks of margin_inner_product_layer.cpp."""

    def sign(x: float) -> float:
        return (x > 0) - (x < 0)

    s0 = sign(cosine)
    if m == 2:
        return 2 * s0 * cosine**2 - 1
    if m == 3:
        s1 = sign(abs(cosine) - 0.5)
        return s1 * (4 * cosine**3 - 3 * cosine) + s0 * (1 + s1) - 2
    s3 = s0 * sign(2 * cosine**2 - 1)
    return s3 * (8 * cosine**4 - 8 * cosine**2 + 1) + 2 * s0 + s3 - 3


@pytest.mark.parametrize("m", [2, 3, 4])
def test_psi_equals_the_authors_layer(m: int) -> None:
    cosines = [c / 500 + 1e-4 for c in range(-499, 500)]
    got = psi(torch.tensor(cosines, dtype=torch.float64), float(m))
    torch.testing.assert_close(got, torch.tensor([caffe(c, m) for c in cosines], dtype=torch.float64))


@pytest.mark.parametrize("m", MULTIPLIERS)
def test_psi_gradient_by_differences(m: float) -> None:
    cosines = torch.linspace(-0.99, 0.99, 61, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: psi(c, m), cosines, eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("m", [1.0, 2.0, 3.0, 4.0])
def test_psi_gradient_at_the_poles_is_m_squared(m: float) -> None:
    poles = torch.tensor([1.0, -1.0], requires_grad=True)
    psi(poles, m).sum().backward()
    assert poles.grad is not None
    torch.testing.assert_close(poles.grad, torch.full((2,), m * m))
    (grad,) = torch.autograd.grad(extended_cosine(poles, m, torch.zeros(2)).sum(), poles)
    torch.testing.assert_close(grad, poles.grad)  # with an angle for each sample, too


def test_a_ratio_of_sines_is_bounded_where_only_the_lower_vanishes() -> None:
    phi, theta = torch.tensor([0.5, 0.5, 1e-5]), torch.tensor([1e-7, 0.3, 1e-7])
    wanted = torch.tensor([math.sin(0.5) / 1e-4, math.sin(0.5) / math.sin(0.3), 7.0])
    torch.testing.assert_close(sine_ratio(phi, theta, limit=7.0), wanted)


def test_no_cosine_rounds_beyond_one() -> None:
    rows = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    assert (cosine(rows, rows) <= 1).all() and (cosine(rows, -rows) >= -1).all()


ANGLES = torch.tensor([-0.3, 0.0, 0.4, 0.9, 0.2, 0.5], dtype=torch.float64)
COSINES = torch.tensor([0.3, -0.8, -0.95, 0.99, 0.6, -0.2], dtype=torch.float64)


def test_an_angle_for_each_sample_is_as_if_each_came_alone_with_its_own() -> None:
    together = extended_cosine(COSINES, 1.0, ANGLES)
    alone = [extended_cosine(cosine[None], 1.0, float(angle)) for cosine, angle in zip(COSINES, ANGLES, strict=True)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("clamp", [False, True])
def test_the_gradient_reaches_the_angle_too(clamp: bool) -> None:
    inputs = (COSINES.clone().requires_grad_(), ANGLES.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda c, a: extended_cosine(c, 1.0, a, clamp), inputs)


def test_a_held_angle_stops_at_both_ends_and_has_no_gradient_there() -> None:
    cosines = torch.tensor([0.99, -0.99, 0.5, 1.0, -1.0], dtype=torch.float64, requires_grad=True)
    angles = torch.tensor([-0.5, 0.5, 0.5, -0.5, 0.5], dtype=torch.float64)
    value = extended_cosine(cosines, 1.0, angles, clamp=True)
    wanted = [1.0, -1.0, math.cos(math.acos(0.5) + 0.5), 1.0, -1.0]
    torch.testing.assert_close(value, torch.tensor(wanted, dtype=torch.float64))
    value.sum().backward()
    assert cosines.grad is not None
    assert [bool(slope) for slope in cosines.grad] == [False, False, True, False, False]
