"""`make bench-gpu`: head, backbones, whole step and reading on this machine's GPU, in ten minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cluster.ranks.process_group import process_group
from cluster.ranks.topology import Topology
from tests.benchmarks.gpu import backbones, head, reading, step
from tests.benchmarks.gpu.timing import report

# Read when cuBLAS starts, and needed for repeatable products: as stages/train.py sets it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it


@pytest.fixture(scope="module")
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU that torch can use")
    return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def group(gpu: torch.device) -> Iterator[dist.ProcessGroup]:
    with process_group(Topology(), gpu, 60, {}) as together:
        yield together.group


def test_head(gpu: torch.device) -> None:
    report("gpu_head", head.measure(gpu))


def test_backbones(gpu: torch.device, group: dist.ProcessGroup, tmp_path: Path) -> None:
    report("gpu_backbones", backbones.measure(tmp_path, gpu, group))


def test_step(gpu: torch.device, group: dist.ProcessGroup, tmp_path: Path) -> None:
    rows, parts = step.measure(tmp_path, gpu, group)
    report("gpu_step", rows, milliseconds_of_parts=parts)


def test_reading(gpu: torch.device, tmp_path: Path) -> None:
    rows = [row for threads in (2, 8) for row in reading.measure(tmp_path, gpu, threads=threads)]
    report("gpu_reading", rows, bad_image_milliseconds=reading.bad_image_milliseconds(tmp_path, gpu))
