"""The Triton kernel: equal to float64 under Triton's interpreter, blocks that fit the cache, memory that is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.head.kernels import TritonLoop, choose
from pipeline.head.kernels.triton_tiles import block_in_cache
from pipeline.head.margins import MARGINS
from pipeline.head.margins.arcface import ArcFace
from pipeline.head.margins.curricularface import CurricularFace
from pipeline.planning import Job, head_block

ROOT = Path(__file__).parents[4]
INTERPRETED = Path(__file__).with_name("interpreted.py")
# Relative to float64; of logits of up to 29 for the log-sum-exp. (The interpreter computes nonsense with bfloat16.)
FLOAT32, FLOAT16 = {"logsumexp": 4e-6, "rest": 3e-6}, {"logsumexp": 4e-3, "rest": 2e-3}
WAYS = (
    "plain",
    "raw rows",
    "warped",
    "detached",
    "in blocks",
    "updated",
    "updated by another",
    "summed",
    "sampled, in blocks",
    "sampled, updated",
    "sampled, summed",
    "float16",
    "float16, warped",
)


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    pytest.importorskip("triton", reason="needs Triton, which PyTorch's builds for CUDA bring")
    done = subprocess.run(
        [sys.executable, INTERPRETED],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("way", WAYS)
def test_it_equals_float64_and_repeats_bit_for_bit(found: dict[str, dict[str, float]], way: str) -> None:
    bounds = FLOAT16 if way.startswith("float16") else FLOAT32
    errors = dict(found[way])
    assert errors.pop("repeats") == 1
    assert errors.pop("logsumexp") < bounds["logsumexp"]
    assert set(errors) in ({"features", "gradient"}, {"features", "rows", "momentum"})
    assert max(errors.values()) < bounds["rest"], errors


# Another test of this process may have registered a toy.
@pytest.mark.parametrize("name", [name for name in MARGINS if not name.startswith("toy_")])
def test_a_head_with_any_margin_is_the_dense_one(found: dict[str, dict[str, float]], name: str) -> None:
    errors = found[f"margin {name}"]
    assert set(errors) == {"loss", "features", "gradient"}
    assert max(errors.values()) < 3e-6, errors


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_host_queues_two_graphs_a_step_and_copies_of_the_batch(
    found: dict[str, dict[str, float]], blocks: int
) -> None:
    queued = found[f"host, {blocks} blocks"]
    assert queued.pop("same") == 1, "captured or not, the same rows to the bit"
    assert queued == {"programs": 0, "captures": 2, "replays": 2, "operators": 14}


@pytest.mark.parametrize("batch", [64, 256, 512, 1024, 4096])
def test_a_block_fits_the_cache_with_what_is_made_of_it(batch: int) -> None:
    l2_bytes = 50 * 2**20
    block = block_in_cache(batch, 512, torch.bfloat16, l2_bytes)
    held = block * (2 * 512 + 2 * batch + 4 * 512)
    assert block % 1024 == 0
    assert held <= 0.7 * l2_bytes
    assert block == 64 * 1024 or held + 1024 * (2 * 512 + 2 * batch + 4 * 512) > 0.7 * l2_bytes


def test_memory_does_not_grow_with_the_classes() -> None:
    def needed(rows: int, batch: int) -> int:
        kernel, bf16 = TritonLoop(), torch.bfloat16
        return kernel.memory_bytes(rows=rows, batch=batch, embedding_dim=512, dtype=bf16, block=None, margin=ArcFace())

    for batch, most in ((256, 50), (1024, 70), (4096, 140)):
        assert needed(200_000, batch) == needed(40_000_000, batch) < most * 2**20
    assert needed(1000, 256) < needed(200_000, 256)


def test_it_is_chosen_on_a_gpu_and_nowhere_else() -> None:
    assert isinstance(choose("cuda", torch.bfloat16, ArcFace()), TritonLoop)
    assert isinstance(choose("cuda", torch.float32, ArcFace()), TritonLoop)
    assert not isinstance(choose("cpu", torch.float32, ArcFace()), TritonLoop)
    assert not isinstance(choose("cuda", torch.float64, ArcFace()), TritonLoop)


def test_a_margin_that_it_does_not_take_is_the_block_loops_and_planned_as_such() -> None:
    taken = {name for name in MARGINS if isinstance(choose("cuda", torch.bfloat16, MARGINS.parse(name)), TritonLoop)}
    assert {name for name in MARGINS if not name.startswith("toy_")} - taken == {
        "curricularface",
        "sphereface2",
        "uniface",
    }
    job = Job(classes=10**6, embedding_dim=512, global_batch=512, ranks=1)
    assert head_block(job) == 8192
    assert head_block(replace(job, margin=CurricularFace())) == 2048
