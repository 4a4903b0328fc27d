"""A-Softmax: its limits, and λ against the authors' schedule."""

import pytest
import torch

from pipeline.head.margins import Target
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.margins.softmax import ModifiedSoftmax


def test_a_softmax_tends_to_modified_softmax_for_large_lambda_and_equals_it_for_m_one() -> None:
    target = Target(torch.randn(50, 8, dtype=torch.float64), torch.randn(50, 8, dtype=torch.float64))
    plain = ModifiedSoftmax().target_logit(target, None, {})
    torch.testing.assert_close(ASoftmax(m=4).target_logit(target, 1e12, {}), plain)
    torch.testing.assert_close(ASoftmax(m=1).target_logit(target, 5.0, {}), plain)


def test_without_a_lambda_it_is_the_pure_loss() -> None:
    target = Target(torch.randn(50, 8, dtype=torch.float64), torch.randn(50, 8, dtype=torch.float64))
    assert torch.equal(ASoftmax().target_logit(target, None, {}), ASoftmax().target_logit(target, 0.0, {}))


def test_lambda_is_the_authors_schedule() -> None:
    # the layer raises its counter before it computes λ: the first step is number 1
    assert ASoftmax().lambda_at(0) == pytest.approx(1363.636, abs=1e-3)
    assert ASoftmax().lambda_at(9) == pytest.approx(1500 / 2)
    assert ASoftmax().lambda_at(10**6) == 5 == ASoftmax().lambda_floor
    assert ASoftmax(lambda_max=5, lambda_min=5).lambda_at(0) == 5
    # the released solver: base 1000, γ 0.12, power 1
    assert ASoftmax(lambda_max=1000, lambda_min=5, lambda_gamma=0.12).lambda_at(0) == pytest.approx(892.857, abs=1e-3)
