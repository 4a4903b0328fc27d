"""Numbers gone wrong on one rank: agreed by all, nothing applied, left out or gone back from, dumped."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from typing_extensions import override

from cluster.goodput import Account
from cluster.ranks.watchdog import Watchdog
from pipeline.backbones.iresnet import IResNetBackbone
from pipeline.backbones.sphereface import SphereFaceBackbone
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.optim.sgd import SGD
from pipeline.recipe.schema import Checkpoint, Data, Faults, Head, Log, Recipe
from pipeline.run.checkpoint import complete_steps
from pipeline.shards.format.manifest import ShardError
from pipeline.training.evaluator import Evaluator
from pipeline.training.guard import NonFiniteError
from pipeline.training.loop import Trainer
from pipeline.training.observed import train_observed
from pipeline.training.observers import observers_of
from pipeline.training.observers.observer import Observer
from pipeline.training.record import Record, Window
from pipeline.training.saves import UnsavedError
from stages.train import place
from tests.distributed.ranks import run_ranks
from tests.distributed.trainer import trainer_of
from tests.faces import write_shards
from tests.fault_table import Row
from tests.fault_table import record as record_fault

BAD = 5  # position of the batch that goes wrong; a checkpoint is saved after 3 steps


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


def recipe(shards: Path, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "seed": 3,
        "data": Data(shards=shards, global_batch=12, streams=2, decode_threads=1),
        "backbone": SphereFaceBackbone(name="sphereface4", embedding_dim=8),
        "head": Head(margin=ASoftmax(lambda_max=50, lambda_gamma=0.5)),
        "optimizer": SGD(steps=8, learning_rate=0.02),
        "checkpoint": Checkpoint(every=3),
    }
    return Recipe(**{**fields, **changes})


def spoil(trainer: Trainer, how: str) -> None:
    """Make batch `BAD` go wrong on this rank, each time that it is met, and every step slow."""
    embed, backward = trainer.engine.embed, trainer.engine.backward

    def bad_embed(images: torch.Tensor) -> torch.Tensor:
        now = how if trainer.step == BAD else ""
        time.sleep(0.05)
        return embed(images * math.nan if now == "embedding" else images) * (-1000 if now == "spike" else 1)

    def bad_backward(embeddings: torch.Tensor, grad: torch.Tensor) -> None:
        backward(embeddings, grad * (math.inf if trainer.step == BAD and how == "gradient" else 1))

    trainer.engine.embed, trainer.engine.backward = bad_embed, bad_backward  # type: ignore[method-assign,assignment]


def snapshot(trainer: Trainer) -> list[torch.Tensor]:
    state = trainer.saves.state()
    tensors = [*state.whole_tensors().values(), *state.rows_tensors(slice(None)).values()]
    return [tensor.clone() for tensor in tensors]


def train_spoilt(rank: int, ranks: int, plan: Recipe, run: Path, how: str, stop_in: int = -1) -> dict[str, Any]:
    trainer = trainer_of(rank, ranks, plan, run)
    if rank == ranks - 1:
        spoil(trainer, how)
    records, unchanged = [], True
    before: list[torch.Tensor] = []
    try:
        for record in trainer.train(lambda: trainer.step == stop_in):
            records.append(record)
            if record.step == BAD:
                before = snapshot(trainer)
            elif record.skipped and plan.faults.action == "skip":
                unchanged &= all(torch.equal(a, b) for a, b in zip(before, snapshot(trainer), strict=True))
    except NonFiniteError as error:
        return {"error": str(error)}
    return {
        "steps": [r.step for r in records],
        "skipped": [r.step - 1 for r in records if r.skipped],
        "losses": {r.step: r.loss for r in records if not r.skipped},
        "unchanged": unchanged,
        "waited": sum(r.waited_seconds for r in records),
        "end": snapshot(trainer),
    }


STAGES: list[dict[str, Any]] = [{"zero_stage": stage} for stage in (0, 1, 2, 3)]
FUSED = {"head": Head(margin=ASoftmax(lambda_max=50, lambda_gamma=0.5), fused_update=True)}
# has statistics that a forward pass moves
NORMALISED: dict[str, Any] = {"backbone": IResNetBackbone(name="iresnet18", embedding_dim=8)}


@pytest.mark.parametrize(
    ("change", "how"),
    [*((stage, "gradient") for stage in STAGES), ({}, "embedding"), (FUSED, "embedding"), (NORMALISED, "embedding")],
    ids=str,
)
def test_a_bad_step_is_left_out_on_all_ranks_bit_for_bit(
    shards: Path, tmp_path: Path, change: dict[str, Any], how: str
) -> None:
    for result in run_ranks(train_spoilt, 2, recipe(shards, **change), tmp_path, how):
        assert result["steps"] == list(range(1, 9))
        assert result["skipped"] == [BAD]
        assert result["unchanged"], "something of the bad step was applied"
        assert all(map(math.isfinite, result["losses"].values()))
    done = f"NaN or infinite {how} on one of 2 ranks"
    outcome = "agreed before anything is applied, left out bit for bit, batch dumped (ZeRO 0 to 3, fused, BatchNorm)"
    record_fault(Row(f"Not finite: {how}", done, 1, 0, 0, outcome))


def test_the_bad_batch_is_dumped_by_its_samples(shards: Path, tmp_path: Path) -> None:
    waiting, _ = run_ranks(train_spoilt, 2, recipe(shards), tmp_path, "embedding")
    assert waiting["waited"] > 0.1, "of eight steps in which the other rank sleeps for 0.05 s"
    (dump,) = (tmp_path / "faults").iterdir()
    facts = json.loads(dump.read_text())
    assert dump.name == f"step-{BAD:08d}.json"
    assert facts["fault"].startswith(f"step {BAD}: loss nan (λ ")
    assert len(facts["samples"]) == len(facts["embedding_norm"]) == len(facts["target_cosine"]) == 12
    assert all(".tar" in sample for sample in facts["samples"])
    assert facts["embedding_norm"].count("nan") == 6, "the norms do not show which rank's half was bad"


def test_going_back_and_leaving_the_batch_out_is_leaving_it_out(shards: Path, tmp_path: Path) -> None:
    skipped = run_ranks(train_spoilt, 2, recipe(shards), tmp_path / "a", "gradient")[0]
    back = recipe(shards, faults=Faults(action="roll_back"))
    for result in run_ranks(train_spoilt, 2, back, tmp_path / "b", "gradient"):
        # from the bad step back to the checkpoint after 3 steps, and past the batch
        assert result["steps"] == [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]
        assert result["skipped"] == [BAD, BAD]
        assert result["losses"] == skipped["losses"]
    assert len(list((tmp_path / "b" / "faults").iterdir())) == 1
    outcome = "back to the last checkpoint and past the batch; the same losses as leaving it out"
    record_fault(Row("Not finite, roll back", "infinite gradient on one of 2 ranks", 3, 0, None, outcome))


def test_rows_updated_before_the_backbones_gradient_failed_are_gone_back_from(shards: Path, tmp_path: Path) -> None:
    """With a fused update the rows cannot be spared: the run ends as one that spared them."""
    moved = run_ranks(train_spoilt, 2, recipe(shards, **FUSED), tmp_path / "fused", "gradient")
    spared = run_ranks(train_spoilt, 2, recipe(shards), tmp_path / "plain", "gradient")
    for one, other in zip(moved, spared, strict=True):
        assert one["steps"] == [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]
        assert one["skipped"] == [BAD, BAD]
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)
        for ours, theirs in zip(one["end"], other["end"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    outcome = "rows had moved: back to the last checkpoint and past the batch, whatever the recipe says"
    record_fault(Row("Not finite, fused update", "infinite gradient on one of 2 ranks", 3, 0, None, outcome))


@pytest.mark.parametrize(("change", "kept"), [(FUSED, 3), ({}, BAD + 1)], ids=["fused", "not fused"])
def test_a_run_that_is_stopped_in_a_bad_step_says_what_is_saved(
    shards: Path, tmp_path: Path, change: dict[str, Any], kept: int
) -> None:
    result = run_ranks(train_spoilt, 1, recipe(shards, **change), tmp_path, "gradient", BAD)[0]
    assert (result["steps"][-1], result["skipped"]) == (BAD + 1, [BAD])
    assert complete_steps(tmp_path)[-1] == kept
    how = "saved" if kept == BAD + 1 else f"a bad one; it resumes from the checkpoint of step {kept}"
    assert place(tmp_path, BAD + 1) == f"step {BAD + 1}, {how}"


def keep_nothing_of_a_series(rank: int, ranks: int, plan: Recipe, run: Path) -> list[tuple[int, list[int]]]:
    """Steps 5 to 8 go wrong, each with a save due; what is there after each of the eight."""
    trainer = trainer_of(rank, ranks, plan, run)
    embed = trainer.engine.embed

    def bad_embed(images: torch.Tensor) -> torch.Tensor:
        return embed(images * (math.nan if trainer.step >= BAD - 1 else 1))

    trainer.engine.embed = bad_embed  # type: ignore[method-assign,assignment]
    seen = []
    for record in trainer.train():
        trainer.saves.saver.wait()
        seen.append((record.step, complete_steps(run)))
    return seen


def test_in_a_series_of_skipped_steps_nothing_is_saved_and_nothing_dropped(shards: Path, tmp_path: Path) -> None:
    plan = recipe(shards, checkpoint=Checkpoint(every=1, keep=2))
    (seen,) = run_ranks(keep_nothing_of_a_series, 1, plan, tmp_path)
    assert seen[2:] == [(3, [0, 2, 3]), *((step, [0, 3, 4]) for step in (4, 5, 6, 7)), (8, [0, 3, 4, 8])]


def train_unsaved(rank: int, ranks: int, plan: Recipe, run: Path) -> str:
    trainer = trainer_of(rank, ranks, plan, run)
    with pytest.raises(UnsavedError) as caught:
        list(trainer.train())
    return str(caught.value)


def test_a_first_checkpoint_that_cannot_be_written_ends_the_run(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("mine")
    (reason,) = run_ranks(train_unsaved, 1, recipe(shards), tmp_path)
    assert "checkpoint of step 0 not written: rank 0 on" in reason
    assert reason.endswith("Not a directory. Mend that; the same command then starts over")
    assert (tmp_path / "checkpoints").read_text() == "mine"


def test_a_roll_back_leaves_out_as_many_batches_as_asked(shards: Path, tmp_path: Path) -> None:
    plan = recipe(shards, faults=Faults(action="roll_back", leave_out=2))
    result = run_ranks(train_spoilt, 1, plan, tmp_path, "gradient")[0]
    assert result["skipped"] == [BAD, BAD - 1, BAD]


def test_a_spike_on_one_rank_is_found(shards: Path, tmp_path: Path) -> None:
    plan = recipe(shards, faults=Faults(spike_factor=5.0), optimizer=SGD(steps=60, learning_rate=0.002))
    for result in run_ranks(train_spike, 2, plan, tmp_path):
        assert result["skipped"] == [55]
        assert "a spike" in result["fault"]
    done = "embeddings of one rank turned round and 1000 times as long"
    record_fault(Row("Loss spike", done, 1, 0, 0, "found by the running mean, left out, batch dumped"))


def train_spike(rank: int, ranks: int, plan: Recipe, run: Path) -> dict[str, Any]:
    globals()["BAD"] = 55  # this process's copy: the mean must be known first
    result = train_spoilt(rank, ranks, plan, run, "spike")
    dist.barrier()
    (dump,) = (run / "faults").iterdir()
    return result | {"fault": json.loads(dump.read_text())["fault"]}


def test_faults_without_end_stop_the_run(shards: Path, tmp_path: Path) -> None:
    plan = recipe(shards, faults=Faults(limit=1), data=Data(shards=shards, global_batch=12, decode_threads=1))
    for result in run_ranks(train_all_spoilt, 2, plan, tmp_path):
        assert result["error"].startswith("step 1: loss nan")
        assert "the number of bad steps is 2, faults.limit allows 1" in result["error"]


def train_all_spoilt(rank: int, ranks: int, plan: Recipe, run: Path) -> dict[str, Any]:
    trainer = trainer_of(rank, ranks, plan, run)
    with torch.no_grad():
        trainer.head.weight_SD[0, 0] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        list(trainer.train())
    return {"error": str(caught.value)}


def test_saving_and_going_back_have_as_long_as_the_disk_takes(shards: Path, tmp_path: Path) -> None:
    plan = recipe(shards, checkpoint=Checkpoint(every=BAD), faults=Faults(action="roll_back"))
    (waited_for,) = run_ranks(train_watched, 1, plan, tmp_path)
    # of step 0; before going back, for that of step BAD, to which it goes; the last
    assert waited_for == ["a save", "a save", "a roll-back", "a save"]


def train_watched(rank: int, ranks: int, plan: Recipe, run: Path) -> list[str]:
    """What the watchdog was patient with while a run was observed."""
    patient, waited_for = Watchdog.patient, list[str]()

    def listen(dog: Watchdog, what: str) -> AbstractContextManager[None]:
        waited_for.append(what)
        return patient(dog, what)

    Watchdog.patient = listen  # type: ignore[method-assign,assignment]
    trainer = trainer_of(rank, ranks, plan, run)
    spoil(trainer, "embedding")
    observe(trainer, [])
    return waited_for


def observe(trainer: Trainer, observers: list[Observer]) -> None:
    watchdog = Watchdog(dist.HashStore(), trainer.topology, 300)
    train_observed(trainer, Evaluator(trainer, []), observers, watchdog, lambda: False)


class Toy(Observer):
    """What somebody adds from outside: it collects losses, and its own troubles are no concern of the run."""

    def __init__(self, full_disk: bool) -> None:
        self.losses: dict[int, float] = {}
        self.started_at, self.finished, self._full_disk = -1, False, full_disk

    @override
    def started(self, step: int) -> None:
        self.started_at = step

    @override
    def recorded(self, record: Record, window: Window) -> None:
        if self._full_disk:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.losses[record.step] = record.loss

    @override
    def ended(self, finished: bool) -> None:
        self.finished = finished


def train_with_toys(rank: int, ranks: int, plan: Recipe, run: Path, resume: int | None) -> dict[str, Any]:
    trainer = trainer_of(rank, ranks, plan, run)
    if resume is not None:
        trainer.resume(resume)
    broken, toy = Toy(full_disk=True), Toy(full_disk=False)
    observe(trainer, [broken, toy, *observers_of(trainer, 0, Account.opened(0.0))])
    return {"toys": [(t.started_at, t.losses, t.finished) for t in (broken, toy)], "step": trainer.step}


def test_an_observer_from_outside_hears_the_run_and_another_that_fails_does_not_end_it(
    shards: Path, tmp_path: Path
) -> None:
    plan = recipe(shards, log=Log(every=1, metrics_port=None))
    (first,) = run_ranks(train_with_toys, 1, plan, tmp_path, None)
    (broken, toy) = first["toys"]
    assert first["step"] == 8 and broken == (0, {}, True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert toy == (0, {row["step"]: row["loss"] for row in rows}, True)
    assert sorted(toy[1]) == list(range(1, 9))
    (again,) = run_ranks(train_with_toys, 1, plan, tmp_path, 6)
    assert again["toys"][1] == (6, {step: toy[1][step] for step in (7, 8)}, True)


def train_with_a_bad_sample(rank: int, ranks: int, plan: Recipe, run: Path) -> list[float]:
    trainer = trainer_of(rank, ranks, plan, run)
    spoil(trainer, "embedding")
    return [float(str(record.values["decode_failures_total"])) for record in trainer.train()]


def break_a_sample_of_step_0(rank: int, ranks: int, plan: Recipe, run: Path) -> None:
    """Overwrite an image in the shards, which only steps 0 to 2, the first epoch, are sure to meet."""
    shards = plan.data.shards
    sample = int(trainer_of(rank, ranks, plan, run).order.batch(0)[0])
    row = np.load(shards / "index.npy")[sample]
    with (shards / "faces-000000.tar").open("r+b") as file:
        file.seek(int(row["offset"]))
        file.write(bytes(int(row["size"])))


def test_undecodable_samples_are_counted_on_when_a_roll_back_reads_again(tmp_path: Path) -> None:
    """A new reader counts from 0; what a step adds must not fall below that, since no counter takes it."""
    plan = recipe(write_shards(tmp_path / "set", identities=7, images=6), faults=Faults(action="roll_back"))
    run_ranks(break_a_sample_of_step_0, 1, plan, tmp_path / "unused")
    (added,) = run_ranks(train_with_a_bad_sample, 1, plan, tmp_path / "run")
    assert len(added) == 11, "it was not rolled back"
    assert min(added) >= 0
    assert sum(added) >= 1, "the sample was not met"


def train_on_nothing(rank: int, ranks: int, plans: list[Recipe], run: Path) -> list[str]:
    said = []
    for number, plan in enumerate(plans):
        with pytest.raises(ShardError) as caught:
            list(trainer_of(rank, ranks, plan, run / str(number)).train())
        said.append(str(caught.value))
    return said


def test_a_set_of_which_nothing_decodes_ends_the_run_on_every_rank_naming_samples(tmp_path: Path) -> None:
    plan = recipe(write_shards(tmp_path / "set", identities=7, images=6))
    plans = [plan.model_copy(update=change) for change in (*STAGES, NORMALISED)]
    tar = plan.data.shards / "faces-000000.tar"
    with tar.open("r+b") as file:
        for row in np.load(plan.data.shards / "index.npy"):
            file.seek(int(row["offset"]))
            file.write(bytes(int(row["size"])))
    first, second = run_ranks(train_on_nothing, 2, plans, tmp_path / "run")
    assert first == second
    for number, said in enumerate(first):
        assert said.startswith(
            "data.max_undecodable: 12 of 12 samples read so far cannot be decoded, wanted at most 1.00%"
        )
        assert said.count(".jpg, faces-000000.tar, ") == 10
        assert complete_steps(tmp_path / "run" / str(number)) == [0]
    outcome = "all ranks end with exit code 65 and name samples"
    record_fault(Row("Nothing decodes", "every image of the set overwritten (2 ranks)", None, 0, None, outcome))
