"""A save against `torch.save` of the same state: how long training stands still, how long the save and a load take.

One rank; the state is C rows of 512 and their momentum, up to 4 GB. `torch.save` is what one would write instead: the
loop stands still for all of it, there is no digest, and here it goes to a new file and is synced to disk, as ours is,
for a fair time. The floor of the stall is one copy of the state in memory. And what a restart costs, part by part.
"""

import os
import re
import time
from pathlib import Path

import pytest
import torch

from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Checkpoint
from pipeline.run import checkpoint
from pipeline.run.checkpoint import Meta, State
from pipeline.run.folder import RunFolder
from pipeline.run.saver import Saver
from pipeline.run.whole import damage
from tests.benchmarks.results import write
from tests.end_to_end.launcher import metrics, train, write_recipe
from tests.faces import ROOT, write_shards

DIM, ROUNDS = 512, 3
GIGABYTES = (0.25, 1.0, 4.0)
# the recipes' default interval
EVERY = Checkpoint().every
CASIA_PEOPLE, SOME_IMAGES = 10_572, 16


def state_of(gigabytes: float) -> State:
    rows = int(gigabytes * 1e9 / (2 * DIM * 4))
    return State(
        torch.randn(rows, DIM),
        {"momentum": torch.randn(rows, DIM)},
        0,
        {"weight": torch.ones(4)},
        {"momentum": {"weight": torch.ones(4)}},
    )


def torch_save(path: Path, state: State) -> float:
    start = time.perf_counter()
    with path.open("xb") as file:
        torch.save({"rows": state.rows_SD, "momentum": state.row_slots["momentum"]}, file)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start


def torch_load(path: Path, state: State) -> float:
    start = time.perf_counter()
    saved = torch.load(path)
    state.rows_SD.copy_(saved["rows"])
    state.row_slots["momentum"].copy_(saved["momentum"])
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def copy(state: State) -> float:
    live = list(state.rows_tensors(slice(None)).values())
    targets = [torch.empty_like(tensor).zero_() for tensor in live]
    start = time.perf_counter()
    for target, tensor in zip(targets, live, strict=True):
        target.copy_(tensor)
    return time.perf_counter() - start


@pytest.mark.parametrize("gigabytes", GIGABYTES)
def test_saving_and_loading(tmp_path: Path, gigabytes: float) -> None:
    state = state_of(gigabytes)
    saver = Saver(tmp_path, None, keep=1)
    times: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        times.setdefault(name, []).append(seconds)

    for step in range(1, ROUNDS + 1):
        meta = Meta(step, state.rows_SD.shape[0], DIM, "", 1)
        note("copy in memory, the stall's floor", copy(state))
        note(
            "stall of our save" if step > 1 else "stall of the first save, which makes the buffers",
            saver.begin(state, meta),
        )
        saved = saver.finish()
        assert saved is not None and saved.error is None
        note("our save, in the background", saved.seconds)
        note("torch.save, a stall", torch_save(tmp_path / "plain", state))
        start = time.perf_counter()
        assert damage(RunFolder(tmp_path).checkpoint(step)) == []
        note("our digests checked", time.perf_counter() - start)
        start = time.perf_counter()
        checkpoint.load(tmp_path, step, state, meta)
        note("our load", time.perf_counter() - start)
        note("torch.load", torch_load(tmp_path / "plain", state))
    seconds = {name: round(sorted(some)[len(some) // 2], 3) for name, some in times.items()}
    # the stall is under 1% of training where a step takes longer than this
    fits_step = seconds["stall of our save"] / EVERY / 0.01
    write(
        f"checkpoint_{gigabytes:g}gb",
        {"gigabytes": gigabytes, "seconds": seconds, f"step_seconds_at_which_the_stall_is_1%_every_{EVERY}": fits_step},
    )


def test_share_of_training(tmp_path: Path) -> None:
    """Of the CASIA recipe at its own interval: at most this, since a step is more than the backbone's part of it."""
    recipe = load_recipe(ROOT / "stages" / "recipes" / "casia_sphereface20.yaml")
    backbone = recipe.backbone.build((112, 96))
    weights = {name: tensor.detach() for name, tensor in backbone.named_parameters()}
    rows = torch.randn(CASIA_PEOPLE, recipe.backbone.embedding_dim)
    momentum = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    state = State(rows, {"momentum": rows.clone()}, 0, weights, {"momentum": momentum})
    saver = Saver(tmp_path, None, keep=1)
    stalls = []
    for step in range(1, 2 + ROUNDS):
        stalls.append(saver.begin(state, Meta(step, CASIA_PEOPLE, rows.shape[1], "", 1)))
        saved = saver.finish()
        assert saved is not None and saved.error is None
    stall = sorted(stalls[1:])[ROUNDS // 2]  # the first makes the buffers
    images = torch.randn(SOME_IMAGES, 3, 112, 96)
    backbone(images).sum().backward()
    start = time.perf_counter()
    backbone(images).sum().backward()
    step_seconds = (time.perf_counter() - start) * recipe.data.global_batch / SOME_IMAGES
    share = stall / (recipe.checkpoint.every * step_seconds)
    write(
        "checkpoint_share",
        {
            "recipe": "casia_sphereface20",
            "megabytes": 8 * (rows.numel() + sum(tensor.numel() for tensor in weights.values())) / 1e6,
            "stall_seconds": stall,
            "step_seconds_at_least": step_seconds,
            "every_steps": recipe.checkpoint.every,
            "share_at_most": share,
        },
    )


def test_restart_by_part(tmp_path: Path) -> None:
    """From the command to the first step after a resume, on two ranks of this machine."""
    shards = write_shards(tmp_path / "set", identities=7, images=6)
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, 10)
    train(tmp_path, 2, "--recipe", recipe, "--run", "run")
    parts: dict[str, list[float]] = {}
    for steps in (15, 20, 25):
        start = time.time()
        output = train(tmp_path, 2, "--recipe", recipe, "--run", "run", "--set", f"optimizer.steps={steps}")
        (line,) = (line for line in output.splitlines() if "first step done after" in line)
        first = next(row["time"] for row in metrics(tmp_path / "run") if row["step"] == steps - 4)
        named = re.findall(r"([a-z ]+) (\d+\.\d+) s", line.partition("first step done after")[2].partition(": ")[2])
        took = {part.strip(): float(seconds) for part, seconds in named}
        took |= {"launcher": first - start - sum(took.values()), "in all": first - start}
        for part, seconds in took.items():
            parts.setdefault(part, []).append(seconds)
    write("restart", {"seconds": {part: round(sorted(some)[1], 2) for part, some in parts.items()}})
