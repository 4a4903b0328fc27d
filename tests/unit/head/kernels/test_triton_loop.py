"""The Triton kernel: equal to float64 under Triton's interpreter, blocks that fit the cache, memory that is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.head.kernels import choose

pytest.importorskip("triton", reason="needs Triton, which PyTorch's builds for CUDA bring")
from pipeline.head.kernels.triton_loop import TritonLoop, block_in_cache

ROOT = Path(__file__).parents[4]
INTERPRETED = Path(__file__).with_name("interpreted.py")
WAYS = ("plain autograd", "plain blocks", "plain fused", "warped autograd", "detached autograd", "raw rows autograd")
CASES = [f"{dtype} {way}" for dtype in ("float32", "float16") for way in WAYS]
# Relative to float64; of logits of up to 29 for the log-sum-exp. (The interpreter computes nonsense with bfloat16.)
BOUNDS = {"float32": (3e-6, 2e-6), "float16": (4e-3, 2e-3)}


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    done = subprocess.run(
        [sys.executable, INTERPRETED],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_it_equals_float64_and_repeats_bit_for_bit(found: dict[str, dict[str, float]], case: str) -> None:
    logsumexp, relative = BOUNDS[case.split(maxsplit=1)[0]]
    errors = dict(found[case])
    assert errors.pop("repeats") == 1
    assert errors.pop("taken") == 0, "a fused update hands no gradient on"
    assert errors.pop("logsumexp") < logsumexp
    assert set(errors) in ({"features", "gradient"}, {"features", "rows", "momentum"})
    assert max(errors.values()) < relative, errors


def test_no_case_is_left_out(found: dict[str, dict[str, float]]) -> None:
    assert set(found) == set(CASES)


@pytest.mark.parametrize("batch", [64, 256, 512, 1024, 4096])
def test_a_block_fits_the_cache_with_what_is_made_of_it(batch: int) -> None:
    l2_bytes = 50 * 2**20
    block = block_in_cache(batch, 512, torch.bfloat16, l2_bytes)
    held = block * (2 * 512 + 2 * batch + 4 * 512)
    assert block % 1024 == 0
    assert held <= 0.7 * l2_bytes
    assert block == 64 * 1024 or held + 1024 * (2 * 512 + 2 * batch + 4 * 512) > 0.7 * l2_bytes


@pytest.mark.parametrize("batch", [256, 1024, 4096])
def test_memory_does_not_grow_with_the_classes_and_stays_below_100_mib(batch: int) -> None:
    kernel = TritonLoop()
    sizes = [
        kernel.memory_bytes(rows=rows, batch=batch, embedding_dim=512, dtype=torch.bfloat16, block=None)
        for rows in (200_000, 1_000_000, 40_000_000)
    ]
    assert sizes[0] == sizes[1] == sizes[2]
    assert sizes[0] < 100 * 2**20


def test_it_is_chosen_on_a_gpu_and_nowhere_else() -> None:
    assert isinstance(choose("cuda", torch.bfloat16), TritonLoop)
    assert isinstance(choose("cuda", torch.float32), TritonLoop)
    assert not isinstance(choose("cpu", torch.float32), TritonLoop)
    assert not isinstance(choose("cuda", torch.float64), TritonLoop)
