"""The Triton programs, compiled for GPUs that need not be here: nothing spills, and shared memory is the card's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.head.kernels.triton_tiles import tiles_of

pytest.importorskip("triton", reason="needs Triton, which PyTorch's builds for CUDA bring")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.head.kernels import triton_ops as ops

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Bytes of shared memory that one program may have, by CUDA's programming guide.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
WIDTH = 512

# What the launches give, by the argument's name; the rest are pointers to float32.
INTEGERS = {"first", "grad_first", "G", "M", "N", "K", "stride_am", "stride_ak"}
NUMBERS = {"inverse_m", "scale", "inverse_scale", "momentum", "weight_decay"}
FACTORS = {"FACTORS", "FEATURES", "SOFTMAX", "A", "B"}
POINTERS = {"TARGET": "*i32", "COUNT": "*i32", "ROWS": "*i32", "TARGET_ROWS": "*i32", "TARGET_ORDER": "*i64"}

Program = tuple[Any, dict[str, object], int, int]


def programs(dtype: torch.dtype) -> dict[str, Program]:
    """By name: kernel, constants, warps, stages. Of variants the one that does most."""
    tiles = tiles_of(dtype)
    tile: dict[str, object] = {"P": WIDTH, "BLOCK_G": tiles.samples, "BLOCK_R": tiles.classes, "BLOCK_K": tiles.depth}
    tile["PRECISION"] = "tf32x3" if dtype == torch.float32 else "tf32"
    rows: dict[str, object] = {"D": WIDTH, "P": WIDTH, "BLOCK_R": tiles.rows(WIDTH), "SAMPLED": True, "UNIT": True}
    softmax = {**tile, "GROUP": tiles.group, "BLOCK": 8192, "DETACHED": False}
    side = tiles.product
    product = {"BLOCK_M": side, "BLOCK_N": side, "BLOCK_K": 32, "ACCUMULATE": True, "PRECISION": "tf32x3"}
    finish = {**rows, "GRAD_WIDTH": WIDTH, "TARGETS": 1024}
    of_logits, of_rows = (tiles.warps, tiles.stages), (4, 3)
    found: dict[str, Program] = {
        "partial_logsumexp": (ops.partial_logsumexp, {**tile, "WARPED": False}, *of_logits),
        "softmax": (ops.softmax, {**softmax, "WARPED": False}, *of_logits),
        "softmax, warped": (ops.softmax, {**softmax, "WARPED": True}, *of_logits),
    }
    if dtype == torch.float32:
        return found | {"product": (ops.product, product, *of_rows)}
    return found | {
        "partial_logsumexp, warped": (ops.partial_logsumexp, {**tile, "WARPED": True}, *of_logits),
        "normalise": (ops.normalise, rows, *of_rows),
        "finish_rows, sgd": (ops.finish_rows, {**finish, "END": "sgd"}, *of_rows),
        "finish_rows, add": (ops.finish_rows, {**finish, "END": "add"}, *of_rows),
    }


def argument_type(name: str, dtype: torch.dtype) -> str:
    if name in INTEGERS:
        return "i32"
    if name in NUMBERS:
        return "fp32"
    if name in FACTORS:
        return "*fp32" if dtype == torch.float32 else "*bf16"
    return POINTERS.get(name, "*fp32")


def usage(program: Program, dtype: torch.dtype, capability: int, folder: Path) -> tuple[int, int, str]:
    """Bytes of local memory a thread (spilled registers), bytes of shared memory, and the PTX."""
    kernel, constants, warps, stages = program
    assert set(constants) <= set(kernel.arg_names)
    kinds = {name: "constexpr" if name in constants else argument_type(name, dtype) for name in kernel.arg_names}
    # What the just-in-time compiler finds by looking: without it loads are narrow, and other registers are needed.
    places = [place for place, kind in enumerate(kinds.values()) if kind[0] == "*" or kind == "i32"]
    aligned = {(place,): [["tt.divisibility", 16]] for place in places}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants, attrs=aligned)
    built = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages}
    )
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(built.asm["cubin"])
    text = subprocess.run([CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+).* LOCAL:(\d+)", text)
    assert found is not None, text
    return sum(map(int, found.groups())), built.metadata.shared, built.asm["ptx"]


CASES = [(dtype, name) for dtype in (torch.bfloat16, torch.float32) for name in programs(dtype)]


@pytest.mark.skipif(not CUOBJDUMP.is_file(), reason="this build of Triton has no cuobjdump")
@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize(("dtype", "name"), CASES, ids=str)
def test_no_program_spills_and_all_fit_the_cards_shared_memory(
    dtype: torch.dtype, name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    spilled, shared, code = usage(programs(dtype)[name], dtype, capability, tmp_path)
    assert spilled == 0
    assert shared <= SHARED[capability]
    if name.startswith(("partial_logsumexp", "softmax")):
        assert {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}[capability] in code, "not on the tensor cores"
    assert not re.search(r"\b(atom|red)\.global", code), "an atomic sum has no one order"
