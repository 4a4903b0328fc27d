"""What `make` would do on machines that are not here: with no GPU, with one, with several; without its own Python."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commands(folder: Path, gpus: int, *arguments: str) -> str:
    """The commands that `make` would run where `nvidia-smi -L` lists so many GPUs."""
    nvidia_smi = folder / "nvidia-smi"
    lines = "".join(f"echo 'GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-{i})'\n" for i in range(gpus))
    nvidia_smi.write_text(f"#!/bin/sh\n{lines}[ {gpus} -gt 0 ]\n")
    nvidia_smi.chmod(0o755)
    command = ["make", "-n", "-B", "-C", str(ROOT), *arguments]
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("gpus", "ranks", "on_cpu"), [(0, 2, True), (1, 1, False), (2, 2, False), (8, 2, False)])
def test_the_demo_uses_the_gpus_that_there_are(tmp_path: Path, gpus: int, ranks: int, on_cpu: bool) -> None:
    (start,) = [line for line in commands(tmp_path, gpus, "demo").splitlines() if "deepspeed --num_gpus" in line]
    assert f"deepspeed --num_gpus {ranks} " in start
    assert ("CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu" in start) == on_cpu


@pytest.mark.parametrize("target", ["test-gpu", "bench-gpu"])
def test_gpu_targets_run_without_a_virtual_environment(tmp_path: Path, target: str) -> None:
    alone = commands(tmp_path, 1, target, "VENV=", "PYTHON=python3.12")
    assert "pip install" not in alone
    assert f'PYTHONPATH="{ROOT}' in alone and " python3.12 -m pytest " in alone
    assert "pip install" in commands(tmp_path, 1, target)
