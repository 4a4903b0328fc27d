"""Which of their algorithms the libraries may choose on a GPU: repeatable ones, or the fastest."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def keep_compiled() -> None:
    """Let torch.compile keep what it has compiled in the user's cache, where the next start finds it.

    Its own default is a folder of /tmp. ``TORCHINDUCTOR_CACHE_DIR`` names another.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "torchinductor"))


def choose_algorithms(repeatable: bool) -> None:
    """Ask torch, cuDNN and cuBLAS for kernels that repeat bit for bit, or for the fastest. Of this process.

    Before the first matrix product on a GPU: cuBLAS reads its workspace once. Without a GPU all kernels repeat.
    """
    if repeatable:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(repeatable, warn_only=True)
    # By default torch then also fills what it allocates, every output of a batch norm for one, with NaN: a pass over
    # memory for nothing, since what is computed here reads no number that was not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    # Trial runs of a convolution's algorithms: the winner may be another one after a restart.
    torch.backends.cudnn.benchmark = not repeatable
