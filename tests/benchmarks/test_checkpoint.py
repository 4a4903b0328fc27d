"""A save against `torch.save` of the same state: how long training stands still, how long the save and a load take.

One rank; the state is C rows of 512 and their momenta, up to 4 GB. `torch.save` is what one would write instead: the
loop stands still for all of it, there is no digest, and here it is synced to disk, as ours is, for a fair time. The
floor of the stall is one copy of the state in memory.
"""

import os
import time
from pathlib import Path

import pytest
import torch

from pipeline.training import checkpoint
from pipeline.training.checkpoint import Meta, State
from pipeline.training.saver import Saver
from tests.benchmarks.results import write

DIM, ROUNDS = 512, 3
GIGABYTES = (0.25, 1.0, 4.0)


def state_of(gigabytes: float) -> State:
    rows = int(gigabytes * 1e9 / (2 * DIM * 4))
    return State(
        torch.randn(rows, DIM), torch.randn(rows, DIM), 0, {"weight": torch.ones(4)}, {"weight": torch.ones(4)}
    )


def torch_save(path: Path, state: State) -> float:
    start = time.perf_counter()
    with path.open("wb") as file:
        torch.save({"rows": state.rows_SD, "momentum": state.rows_momentum_SD}, file)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start


def torch_load(path: Path, state: State) -> float:
    start = time.perf_counter()
    saved = torch.load(path)
    state.rows_SD.copy_(saved["rows"])
    state.rows_momentum_SD.copy_(saved["momentum"])
    return time.perf_counter() - start


def copy(state: State) -> float:
    targets = [torch.empty_like(tensor).zero_() for tensor in (state.rows_SD, state.rows_momentum_SD)]
    start = time.perf_counter()
    for target, tensor in zip(targets, (state.rows_SD, state.rows_momentum_SD), strict=True):
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
        assert checkpoint.damage(checkpoint.path_of(tmp_path, step)) == []
        note("our digests checked", time.perf_counter() - start)
        start = time.perf_counter()
        checkpoint.load(tmp_path, step, state, meta)
        note("our load", time.perf_counter() - start)
        note("torch.load", torch_load(tmp_path / "plain", state))
    seconds = {name: round(sorted(some)[len(some) // 2], 3) for name, some in times.items()}
    write(f"checkpoint_{gigabytes:g}gb", {"gigabytes": gigabytes, "seconds": seconds})
