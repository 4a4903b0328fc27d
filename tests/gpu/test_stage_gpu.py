"""The stages on one GPU as a user starts them: trained, killed, resumed bit for bit, watched, evaluated, exported."""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pipeline.run.checkpoint import complete_steps
from tests.end_to_end.launcher import ON_CPU, metrics, run_python, start_training, train, wait_for, write_recipe
from tests.end_to_end.test_train import scrape
from tests.faces import ROOT, write_faces, write_pairs, write_shards

ENDLESS, MORE = 10**6, 6
# As the recipes for a CPU are, and as those for GPUs are.
FLAVOURS: dict[str, list[str]] = {
    "float32": [],
    "bfloat16": ["--set", "precision=bfloat16", "--set", "head.fused_update=true"],
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in metrics(run)]


@pytest.fixture(scope="module", params=FLAVOURS)
def resumed(
    device: torch.device, shards: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """A run that was scraped, killed and resumed; `scraped` beside it has what its endpoint said."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = write_recipe(folder / "recipe.yaml", shards, ENDLESS, port=0)
    as_named: list[str | Path] = ["--recipe", recipe, *FLAVOURS[request.param], "--run"]
    process = start_training(folder, 1, *as_named, "run", environment=where(device))
    try:
        wait_for(lambda: len(metrics(folder / "run")) >= 7 and complete_steps(folder / "run")[-1] >= 5, process)
        (target,) = (folder / "run" / "targets").glob("*.json")
        values = scrape(target)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    (folder / "scraped").write_text("".join(f"{name}\t{value}\n" for name, value in values.items()))
    # Whatever the machine's speed: killed somewhere after its newest checkpoint, resumed from there for a few steps.
    steps = complete_steps(folder / "run")[-1] + MORE
    write_recipe(recipe, shards, steps, port=0)
    train(folder, 1, *as_named, "run", environment=where(device))
    train(folder, 1, *as_named, "whole", environment=where(device))
    return folder / "run"


def where(device: torch.device) -> Mapping[str, str]:
    return {} if device.type == "cuda" else ON_CPU


def test_killed_and_resumed_it_gives_the_same_losses_bit_for_bit(resumed: Path) -> None:
    whole = resumed.with_name("whole")
    assert losses(resumed) == losses(whole)
    assert complete_steps(resumed)[-1] == complete_steps(whole)[-1] == len(losses(whole))
    assert losses(whole)[-1][1] < losses(whole)[0][1]


def scraped(resumed: Path) -> dict[str, float]:
    lines = (resumed.parent / "scraped").read_text().splitlines()
    return {name: float(value) for name, value in (line.split("\t") for line in lines)}


def test_the_endpoint_has_the_numbers_of_the_gpu(cuda: torch.device, resumed: Path) -> None:
    values = scraped(resumed)
    whole = torch.cuda.get_device_properties(cuda).total_memory
    allocated, peak = values["spherescale_gpu_allocated_bytes"], values["spherescale_gpu_peak_allocated_bytes"]
    assert 1e6 < allocated <= peak < whole
    utilisation = values["spherescale_gpu_utilisation_ratio"]
    assert 0 <= utilisation <= 1 if find_spec("pynvml") else math.isnan(utilisation)
    assert values["spherescale_step_part_seconds_total forward"] > 0


def test_its_network_is_evaluated(device: torch.device, resumed: Path, tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("needs matplotlib, which evaluate.py draws its report with")
    faces = write_faces(tmp_path / "faces", identities=4, images=3, seed=9)
    done = run_python(
        ROOT / "stages" / "evaluate.py",
        *(resumed, "--images", faces, "--pairs", write_pairs(faces), "--step", "0", "--step", "last"),
        *("--device", device.type, "--far", "0.1", "--resamples", "20"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [line.split()[0] for line in done.stdout.splitlines()[-2:]]
    assert steps == ["0", str(complete_steps(resumed)[-1])]


def test_its_network_is_exported(resumed: Path, tmp_path: Path) -> None:
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        pytest.skip("needs the export extra: onnx, onnxscript")
    done = run_python(ROOT / "stages" / "export.py", resumed, tmp_path / "exported")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.name for file in (tmp_path / "exported").iterdir()} >= {"backbone.onnx", "backbone.safetensors"}


def test_a_checkpoint_goes_from_the_cpu_to_the_gpu_and_back(device: torch.device, shards: Path, tmp_path: Path) -> None:
    for leg, (steps, environment) in enumerate([(5, ON_CPU), (10, where(device)), (15, ON_CPU)]):
        recipe = write_recipe(tmp_path / f"{leg}.yaml", shards, steps)
        train(tmp_path, 1, "--recipe", recipe, "--run", "run", environment=environment)
    recipe = write_recipe(tmp_path / "whole.yaml", shards, 15)
    train(tmp_path, 1, "--recipe", recipe, "--run", "whole", environment=ON_CPU)
    got, want = losses(tmp_path / "run"), losses(tmp_path / "whole")
    assert [step for step, _ in got] == list(range(1, 16))
    assert got[:5] == want[:5]
    # cuDNN's convolutions take TF32, whose factors have 10 bits
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in want], rel=2e-2)
