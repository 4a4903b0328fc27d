"""What is asked of the libraries: repeatable kernels at no more than their own cost, or the fastest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.algorithms import choose_algorithms, keep_compiled

FILL = "fill_uninitialized_memory"


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    filled = getattr(torch.utils.deterministic, FILL)
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)
    setattr(torch.utils.deterministic, FILL, filled)


@pytest.mark.parametrize("compiles", [False, True])
def test_repeatable_kernels_are_asked_for_without_trials_and_without_filling_memory(compiles: bool) -> None:
    choose_algorithms(True, compiles)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark, "its choice differs between starts"
    assert not getattr(torch.utils.deterministic, FILL)
    # as torch does by default: the reason why it is switched off
    setattr(torch.utils.deterministic, FILL, True)
    assert torch.empty(100).isnan().all()


def test_the_fastest_are_found_by_trials() -> None:
    choose_algorithms(False, False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_what_is_compiled_is_kept_in_the_users_cache_or_where_the_user_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    keep_compiled()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "torchinductor")
