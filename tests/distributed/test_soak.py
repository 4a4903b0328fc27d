"""Killed over and over, with random changes between: the run is the uninterrupted run, and a refused start says why.

`SOAK_KILLS=200 pytest tests/distributed/test_soak.py` is the long one. The choices are drawn from one seed,
`SOAK_SEED`; where in a step or a save a kill falls is up to the machine.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cluster.stop import EXIT_REFUSED, EXIT_UNSAVED, exit_with
from pipeline.backbones import BACKBONES, Backbone
from pipeline.reading.reader import Batch
from pipeline.run.checkpoint import META, complete_steps
from pipeline.run.folder import PARTIAL, RunFolder
from pipeline.run.history import read_history
from pipeline.training.step import Outcome, Stepper
from stages import train
from tests.distributed.ranks import CONTEXT, TIMEOUT_SECONDS
from tests.faces import write_shards
from tests.fault_table import Row, record
from tests.full_disk import no_file_above
from tests.ports import free_port

KILLS, SEED = int(os.environ.get("SOAK_KILLS", "12")), int(os.environ.get("SOAK_SEED", "20"))
STEPS = 15 * KILLS  # a life is about eight steps
EPOCH = 3  # steps: 42 samples in batches of 12, the rest is left out
ROOM = 1 << 14  # bytes that a file may have on the full disk: the backbone's has 26,000

RECIPE = f"""
seed: 3
timeout_seconds: {TIMEOUT_SECONDS}
data: {{{{shards: {{shards}}, global_batch: 12, streams: 2, decode_threads: 1}}}}
backbone: {{{{name: toy_smooth, embedding_dim: 8}}}}
head: {{{{margin: {{{{name: a_softmax, lambda_max: 50, lambda_gamma: 0.5}}}}}}}}
optimizer: {{{{steps: {STEPS}, learning_rate: 0.01, milestones: [{2 * STEPS // 3}]}}}}
checkpoint: {{{{every: 3, keep: 2}}}}
log: {{{{metrics_port: null}}}}
"""


@BACKBONES.add("toy_smooth")
class SmoothBackbone(Backbone):
    """A toy without kinks: a rounding that another number of ranks makes stays a rounding, however long the run."""

    def build(self, image_size: tuple[int, int]) -> nn.Module:
        """Means of 4 × 4 pixels, and one hidden layer."""
        pixels = 3 * (image_size[0] // 4) * (image_size[1] // 4)
        hidden = nn.Sequential(nn.Linear(pixels, 16), nn.Tanh())
        return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), hidden, nn.Linear(16, self.embedding_dim))


@dataclass(frozen=True)
class Start:
    """A start of training.

    Attributes:
        told: the folder where each rank writes what it did and said.
        ranks, threads: where it runs.
        changes: of the recipe's keys.
        full: the first step of this start on a full disk, and the first with room again; 0: all before the first step.
    """

    recipe: Path
    run: Path
    told: Path
    ranks: int = 1
    threads: int = 1
    changes: Mapping[str, Any] = field(default_factory=dict)
    full: range = range(0)

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return int(self.changes.get("data.accumulation", 1))

    def begin(self) -> list[BaseProcess]:
        """Its ranks, started."""
        self.told.mkdir()
        port = free_port()
        processes: list[BaseProcess] = []
        for rank in range(self.ranks):
            process = CONTEXT.Process(target=train_rank, args=(rank, port, self), daemon=True)
            process.start()
            processes.append(process)
        return processes

    def words(self) -> str:
        """All that its ranks said."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.told.glob("*.txt")))

    def rows(self, rank: int) -> list[dict[str, Any]]:
        """Position, loss and samples of each step of a rank."""
        path = self.told / f"{rank}.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the kill may have torn the last
        return [json.loads(line) for line in lines]

    def batches(self) -> dict[int, list[int]]:
        """The global batches of the steps that all ranks took, by position."""
        taken = {}
        for rows in zip(*map(self.rows, range(self.ranks)), strict=False):
            (step,) = {row["step"] for row in rows}
            shares = [torch.tensor(row["samples"]).reshape(self.accumulation, -1) for row in rows]
            taken[int(step)] = torch.cat(shares, dim=1).reshape(-1).tolist()
        return taken

    def losses(self) -> dict[int, float]:
        """By position, as the first rank has them: it may have taken a step more than `batches` has."""
        return {row["step"]: row["loss"] for row in self.rows(0)}


def train_rank(rank: int, port: int, start: Start) -> None:
    """The stage itself as one rank. It tells of every step its loss and the samples of its batch."""
    for descriptor in (1, 2):
        os.dup2(os.open(start.told / f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    torch.set_num_threads(start.threads)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(start.ranks), LOCAL_RANK=str(rank), LOCAL_SIZE=str(start.ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.argv = ["train.py", "--recipe", str(start.recipe), "--run", str(start.run)]
    for key, value in start.changes.items():
        sys.argv += ["--set", f"{key}={value}"]
    disk = ExitStack()
    told = (start.told / f"{rank}.jsonl").open("a", buffering=1)
    take, done = Stepper.take, 0

    def remember(self: Stepper, batch: Batch, *rest: Any, **more: Any) -> Outcome:
        nonlocal done
        outcome = take(self, batch, *rest, **more)
        told.write(json.dumps({"step": batch.step, "loss": outcome.loss, "samples": batch.ids_B.tolist()}) + "\n")
        done += 1
        look_at_disk()
        return outcome

    def look_at_disk() -> None:
        disk.close()
        if done in start.full:
            disk.enter_context(no_file_above(ROOM))

    Stepper.take = remember  # type: ignore[method-assign]
    look_at_disk()
    exit_with(train.main)


def finish(start: Start) -> list[int | None]:
    """Begin it and wait for its end; the exit codes of its ranks."""
    processes = start.begin()
    for process in processes:
        process.join(TIMEOUT_SECONDS)
    return [process.exitcode for process in processes]


def assert_says_why(start: Start, codes: list[int | None], code: int, why: str) -> None:
    """All ranks ended with the code, and one line names the reason."""
    words = start.words()
    lines = [line for line in words.splitlines() if line.startswith("train.py") and ": meeting: " not in line]
    assert set(codes) == {code}, f"got {codes}: {words}"
    assert "Traceback" not in words, words
    assert len(lines) == 1 and why in lines[0], words


class Soak:
    """The run that is killed, and what is known of it.

    Attributes:
        run: its folder, which is another after a copy.
        starts: those that it has had.
        batches: by position, of the last time that each was taken.
        apart: the largest difference of a loss from that of the calm run.
        counts: what happened, how many times.
    """

    def __init__(self, recipe: Path, folder: Path, chance: random.Random, calm: Start) -> None:
        self.recipe, self.run, self.chance = recipe, folder / "run0", chance
        self.starts: list[Start] = []
        self.batches: dict[int, list[int]] = {}
        self.apart = 0.0
        self.counts: Counter[str] = Counter()
        self._folder, self._calm_losses, self._calm_batches = folder, calm.losses(), calm.batches()
        self._damaged: dict[tuple[int, str], float] = {}  # the time of the file, by which a new one is another

    def whole_steps(self) -> list[int]:
        """Steps of the checkpoints that nothing was done to, rising."""
        folder = RunFolder(self.run)
        damaged = set()
        for (step, name), changed in self._damaged.items():
            path = folder.checkpoint(step) / name
            if path.exists() and path.stat().st_mtime == changed:
                damaged.add(step)
        return [step for step in complete_steps(self.run) if step not in damaged]

    def new_start(self, name: str = "", **facts: Any) -> Start:
        """The next start of this run, on what is drawn."""
        draw, ranks = self.chance, self.chance.choice([1, 2, 3])
        changes = {
            "zero_stage": draw.choice([0, 1, 2, 3]),
            "data.accumulation": draw.choice([1, 2]),
            "checkpoint.keep": draw.choice([1, 2, 3]),
        }
        told = self._folder / f"told{len(self.starts)}{name}"
        defaults: dict[str, Any] = {"run": self.run, "ranks": ranks, "threads": draw.choice([1, 2]), "changes": changes}
        return Start(self.recipe, told=told, **defaults | facts)

    def copy(self) -> None:
        """The run goes on in a copy of its folder; the folder goes."""
        before, self.run = self.run, self._folder / f"run{len(self.starts)}"
        shutil.copytree(before, self.run)
        shutil.rmtree(before)
        self.counts["copied"] += 1

    def damage(self) -> None:
        """A file of the newest checkpoint loses its end, or one bit of it turns; unless no other is whole."""
        steps = self.whole_steps()
        if len(steps) > 1:
            path = self.chance.choice(sorted(RunFolder(self.run).checkpoint(steps[-1]).iterdir()))
            self._spoil(path)
            self._damaged[steps[-1], path.name] = path.stat().st_mtime
            self.counts["damaged"] += 1

    def _spoil(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        if self.chance.random() < 0.3:
            del content[self.chance.randrange(len(content)) :]
        else:
            content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
        path.write_bytes(content)

    def refuse(self) -> None:
        """A start that cannot go on, beside the run; it says why, and changes nothing."""
        saved = bool(complete_steps(self.run))
        what = self.chance.choice(["seed", "parts", "hopeless", "no room", "no folder"] if saved else ["no room"])
        elsewhere = self._folder / f"beside{len(self.starts)}"
        code, why = EXIT_REFUSED, "all of them damaged, wanted one whole"
        facts: dict[str, Any] = {"run": elsewhere}
        if what == "seed":
            facts, why = {"changes": {"seed": 4}}, "seed: got 4, wanted 3 as in "
        elif what == "parts":
            facts, why = {"ranks": 1, "changes": {"data.accumulation": 5}}, "data.accumulation: got 5, wanted a divisor"
        elif what == "hopeless":
            # without a save that only lacks its name
            shutil.copytree(self.run, elsewhere, ignore=shutil.ignore_patterns(f"*{PARTIAL}"))
            for step in complete_steps(elsewhere):
                self._spoil(RunFolder(elsewhere).checkpoint(step) / META)
        elif what == "no room":
            code, why = EXIT_UNSAVED, "step 0 not written: "
            facts["full"] = range(1)
        else:
            elsewhere.touch()
            facts, why = {"run": elsewhere / "run"}, "claims: not written: Not a directory"
        start = self.new_start("refused", **facts)
        assert_says_why(start, finish(start), code, why)
        self.counts[f"refused: {what}"] += 1

    def live_and_die(self) -> None:
        """Start, train for some steps or none, and have every rank killed."""
        before = self.whole_steps()
        partial = RunFolder(self.run).partial_steps()  # of a save that only lacked its name, which a start finishes
        full = range(0)
        if self.chance.random() < 0.2:
            first = self.chance.choice([0, 0, 2])
            full = range(first, first + self.chance.randint(1, 8))
            self.counts["full disk"] += 1
        start, number = self.new_start(full=full), len(self.starts)
        self.starts.append(start)
        processes = start.begin()
        if self.chance.random() < 0.2:
            life, held = 0, False
            time.sleep(self.chance.uniform(0, 1.5))  # in the meeting, while it is built, checked and loaded
        else:
            life, held = self.chance.randint(1, 10), self.chance.random() < 0.1
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(start.rows(0)) < life and processes[0].is_alive():
            assert time.monotonic() < deadline, f"no step was done: {start.words()}"
            time.sleep(0.005)
        if held and processes[0].is_alive():
            second = self.new_start("held", changes={})
            assert_says_why(second, finish(second), EXIT_REFUSED, ": held by pid ")
            self.counts["refused: held"] += 1
        ended = not all(process.is_alive() for process in processes)
        if not ended:
            time.sleep(self.chance.uniform(0, 0.05))  # in mid-step, in mid-save, anywhere
            self.chance.shuffle(processes)
            for process in processes:
                process.kill()
        for process in processes:
            process.join()
        if ended:
            # Only for want of room for its first checkpoint.
            assert not before and 0 in full, f"start {number} ended by itself: {start.words()}"
            assert_says_why(start, [process.exitcode for process in processes], EXIT_UNSAVED, "step 0 not written: ")
            self.counts["first save refused"] += 1
        if start.losses():
            self.judge(start, before, partial)

    def judge(self, start: Start, before: list[int], partial: list[int]) -> None:
        """It went on from the newest whole checkpoint, with the calm run's samples and losses, and the history has it.

        Args:
            before: steps of the whole checkpoints that it found.
            partial: steps of saves that it found unfinished, some of them whole but for their name.
        """
        losses, batches = start.losses(), start.batches()
        first = next(iter(losses))
        assert list(losses) == list(range(first, first + len(losses)))
        assert first == max(before, default=0) or first in partial, f"{first}, {before}, {partial}: {start.words()}"
        assert first <= len(self.batches), f"steps before {first} were never taken"
        for step, batch in batches.items():
            assert batch == self._calm_batches[step], f"step {step} of {start}"
        self.batches |= batches
        # A step from the same state agrees to a relative 1e-6. The absolute part is for small losses: a loss is the
        # difference of two logits' size, and 5e-6 is three places of the last digit of a logit of 16.
        for step, loss in losses.items():
            assert loss == pytest.approx(self._calm_losses[step], rel=1e-4, abs=5e-6), f"step {step} of {start}"
            self.apart = max(self.apart, abs(loss - self._calm_losses[step]))
        if 0 not in start.full:  # else there was no room for a line
            newest = read_history(start.run)[-1]
            assert (newest["step"], newest["ranks"], newest["threads"]) == (first, start.ranks, start.threads)


def test_kills_and_changes_change_nothing(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(shards=write_shards(tmp_path / "set", identities=7, images=6)))
    calm = Start(recipe, tmp_path / "calm", tmp_path / "told")
    assert finish(calm) == [0], calm.words()

    soak = Soak(recipe, tmp_path, random.Random(SEED), calm)
    for _ in range(KILLS):
        change = soak.chance.choice([None, None, soak.copy, soak.damage, soak.damage, soak.refuse])
        if change is not None and (soak.run.exists() or change == soak.refuse):
            change()
        soak.live_and_die()
        assert max(soak.starts[-1].losses(), default=0) < STEPS - 1, "over before the last kill: make the run longer"
    last, before, partial = soak.new_start(), soak.whole_steps(), RunFolder(soak.run).partial_steps()
    assert finish(last) == [0] * last.ranks, last.words()
    soak.judge(last, before, partial)
    soak.starts.append(last)

    assert sorted(soak.batches) == list(range(STEPS))
    assert_no_sample_is_missed_or_doubled([soak.batches[step] for step in range(STEPS)])
    taken = sum(len(start.losses()) for start in soak.starts)
    print(f"{KILLS} kills, {taken} steps taken of {STEPS}, losses {soak.apart:.0e} apart, {dict(soak.counts)}")
    done = (
        f"SIGKILL to all ranks at {KILLS} random moments of {STEPS} steps; between them other ranks, threads, ZeRO "
        "stages, accumulation and `keep`, a full disk, a copied folder, a damaged file"
    )
    outcome = (
        f"no sample missed or doubled; the losses of this toy within {soak.apart:.0e} of the uninterrupted run's; "
        "every refused start says why in a line"
    )
    record(Row("Killed over and over", done, None, None, None, outcome))


def assert_no_sample_is_missed_or_doubled(batches: list[list[int]]) -> None:
    """An epoch is three steps, of 36 different samples."""
    for first in range(0, len(batches), EPOCH):
        counts = Counter(sample for batch in batches[first : first + EPOCH] for sample in batch)
        assert len(counts) == 36 and set(counts.values()) == {1}
    every = Counter(sample for batch in batches for sample in batch)
    assert set(every) == set(range(42)), "a sample was never seen in a hundred epochs"
