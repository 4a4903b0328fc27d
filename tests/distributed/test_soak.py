"""Killed twenty times at random moments, each time resumed on other ranks: the run is the uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.topology import Topology
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.optim.sgd import SGD
from pipeline.reading.reader import Batch
from pipeline.reading.tars import ShardSet
from pipeline.recipe.schema import Checkpoint, Data, Head, Recipe
from pipeline.run.whole import newest_whole
from pipeline.training.loop import Trainer
from pipeline.training.step import Outcome
from tests.distributed.ranks import CONTEXT, TIMEOUT_SECONDS
from tests.faces import write_shards
from tests.fault_table import Row, record

STEPS, KILLS = 300, 20
PATIENCE_SECONDS = 5 * TIMEOUT_SECONDS  # for 300 steps on a loaded machine


def recipe(shards: Path) -> Recipe:
    return Recipe(
        seed=3,
        data=Data(shards=shards, global_batch=12, streams=2, decode_threads=1),
        backbone=SphereFaceBackbone(name="sphereface4", embedding_dim=8),
        head=Head(margin=ASoftmax(lambda_max=50, lambda_gamma=0.5)),
        optimizer=SGD(steps=STEPS, learning_rate=0.01, milestones=(200,)),
        checkpoint=Checkpoint(every=4, keep=2),
    )


def train_until_killed(rank: int, ranks: int, store: str, plan: Recipe, run: Path) -> None:
    """One rank of a start: resumes, trains, and tells of every step its loss and the samples of its batch."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))  # DeepSpeed looks
    timeout = timedelta(seconds=TIMEOUT_SECONDS)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks, timeout=timeout)
    topology = Topology(rank, ranks, rank, ranks)
    trainer = Trainer(plan, ShardSet(plan.data.shards), run, topology, dist.group.WORLD, torch.device("cpu"))
    newest = newest_whole(run, dist.group.WORLD)
    if newest is not None:
        trainer.resume(newest)
    batches: list[Batch] = []
    take = trainer.stepper.take

    def remember(batch: Batch, *rest: Any, **more: Any) -> Outcome:
        batches.append(batch)
        return take(batch, *rest, **more)

    trainer.stepper.take = remember  # type: ignore[method-assign]
    with (run / f"told-{rank}.jsonl").open("a", buffering=1) as told:
        for record in trainer.train():
            row = {"step": record.step, "ranks": ranks, "loss": record.loss, "samples": batches[-1].ids_B.tolist()}
            told.write(json.dumps(row) + "\n")
    dist.destroy_process_group()


def start(ranks: int, store: Path, plan: Recipe, run: Path) -> list[BaseProcess]:
    processes: list[BaseProcess] = []
    for rank in range(ranks):
        process = CONTEXT.Process(target=train_until_killed, args=(rank, ranks, str(store), plan, run), daemon=True)
        process.start()
        processes.append(process)
    return processes


def told(run: Path, rank: int) -> list[dict[str, object]]:
    path = run / f"told-{rank}.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # torn by the kill
    return rows


def final(run: Path) -> tuple[list[float], list[list[int]]]:
    """Losses and global batches along the trajectory that led to the end: of a step done twice, the last time."""
    rows = {(rank, int(str(row["step"]))): row for rank in range(3) for row in told(run, rank)}
    losses, batches = [], []
    for step in range(1, STEPS + 1):
        ranks = int(str(rows[0, step]["ranks"]))
        losses.append(float(str(rows[0, step]["loss"])))
        batches.append([sample for rank in range(ranks) for sample in rows[rank, step]["samples"]])  # type: ignore[attr-defined]
    return losses, batches


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    plan = recipe(write_shards(tmp_path / "set", identities=7, images=6))
    chance = random.Random(20)
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    for run in (calm, wild):
        run.mkdir()
    for process in start(1, tmp_path / "store", plan, calm):
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 0

    done_before_kill = []
    for kill in range(KILLS):
        before = len(told(wild, 0))
        processes = start(chance.choice([1, 2, 3]), tmp_path / f"store{kill}", plan, wild)
        deadline = time.monotonic() + PATIENCE_SECONDS
        life = chance.randint(1, 20)
        while len(told(wild, 0)) < before + life:
            assert time.monotonic() < deadline and processes[0].is_alive(), "no step was done"
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))  # in mid-step, in mid-save, anywhere
        chance.shuffle(processes)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        done_before_kill.append(int(str(told(wild, 0)[-1]["step"])))
    assert done_before_kill[-1] < STEPS, "it was over before the last kill: make the run longer"
    for process in start(2, tmp_path / "last", plan, wild):
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 0

    losses, batches = final(wild)
    calm_losses, calm_batches = final(calm)
    # On other ranks a step from the same state agrees to a relative 1e-6. The absolute part is for the last losses, of
    # 4e-4: a loss is the difference of two logits' size, and 5e-6 is three places of the last digit of a logit of 16.
    assert losses == pytest.approx(calm_losses, rel=1e-4, abs=5e-6)
    assert batches == calm_batches
    assert_no_sample_is_missed_or_doubled(batches)
    done = f"SIGKILL to all ranks at {KILLS} random moments of {STEPS} steps, each time resumed on 1, 2 or 3 ranks"
    apart = max(abs(a - b) for a, b in zip(losses, calm_losses, strict=True))
    outcome = f"no sample missed or doubled; the losses of this toy within {apart:.0e} of the uninterrupted run's"
    record(Row("Killed over and over", done, None, None, None, outcome))


def assert_no_sample_is_missed_or_doubled(batches: list[list[int]]) -> None:
    """42 samples in batches of 12: an epoch is 3 steps, of 36 different samples."""
    for first in range(0, STEPS, 3):
        counts = Counter(sample for batch in batches[first : first + 3] for sample in batch)
        assert len(counts) == 36 and set(counts.values()) == {1}
    every = Counter(sample for batch in batches for sample in batch)
    assert set(every) == set(range(42)), "a sample was never seen in a hundred epochs"
