"""What is asked of the libraries: repeatable kernels at no more than their own cost, or the fastest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cluster.algorithms import choose_algorithms


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    filled = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = filled


def test_repeatable_kernels_are_asked_for_without_trials_and_without_filling_memory() -> None:
    choose_algorithms(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark, "its choice differs between starts"
    assert not torch.utils.deterministic.fill_uninitialized_memory
    # as torch does by default: the reason why it is switched off
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(100).isnan().all()


def test_the_fastest_are_found_by_trials() -> None:
    choose_algorithms(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
