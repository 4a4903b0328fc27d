#!/usr/bin/env python
"""Train and evaluate every run of a study, and write one table of them all.

  python stages/study.py stages/studies/casia.yaml --data /data --out runs/study --ranks 8

A study file names a base recipe, the arms that differ from it in a few keys, seeds, and the pairs that all are
evaluated on. Each arm with each seed is a run folder below --out. What is done is not done again; the same command
resumes what was stopped or killed at any moment. A run that fails is named, and the others continue.

OUT/study.md and OUT/study.html have the tables so far, and are written again after every run. Several of these
processes may share one OUT, on one host or several, each on GPUs of its own (CUDA_VISIBLE_DEVICES): a run that one is
at, the others leave; one that was killed is followed (cluster/lease.py).

Ctrl-C, SIGTERM or SIGUSR1 saves the run in training and ends with code 75; a second one kills it. Code 1: a run
failed; 65: the study is refused; 74: the disk takes nothing; 0: everything is there.
"""

from __future__ import annotations

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import contextlib
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from itertools import product
from pathlib import Path
from types import FrameType

import torch

from cluster.lease import HeldError, Holder, leased
from cluster.marks import marked, sweep
from cluster.progress import ProgressLine
from cluster.ranks.watchdog import end
from cluster.stop import EXIT_STOPPED, SIGNALS, exit_with, faults_in_one_line
from pipeline.backbones import Backbone
from pipeline.backbones.size import count_macs
from pipeline.evaluation.protocols.pairs import read_pairs
from pipeline.evaluation.reports.study_page import write_tables
from pipeline.evaluation.results import load, result_file
from pipeline.evaluation.scoring.draws import Draws
from pipeline.evaluation.scoring.estimates import accuracy_draws
from pipeline.evaluation.study import Run, Study, StudyError, differences, load_study, runs_of
from pipeline.files import file_sha256, locked, named
from pipeline.reading.tars import ShardSet
from pipeline.recipe.fit import check_against_set
from pipeline.recipe.schema import Recipe
from pipeline.run.checkpoint import has_reached
from pipeline.run.folder import RunFolder
from pipeline.run.metrics_log import last_step, read_metrics, series

STAGES = Path(__file__).resolve().parent
CLAIMS = "study-claims"  # in a run's folder: the process that trains and evaluates it
POLL_SECONDS = 1.0
LAST_ROWS = 5  # of the log, from which a run is known to have trained or not

_digest = cache(file_sha256)  # of a pairs file, which each look at a run asks for


@faults_in_one_line("study")
def main() -> int:
    """Check all that can be checked, run what is missing, and tabulate; returns the exit code."""
    args = _parser().parse_args()
    args.out = args.out or Path("runs") / f"study-{args.study.stem}"
    stop = Stop()
    study, absent = load_study(args.study).with_sets_in(args.data)
    if absent:
        print(f"study: without {', '.join(absent)}, whose pairs are not in {args.data}", file=sys.stderr)
    conductor = Conductor(study, args, stop)
    conductor.check()
    conductor.judge_networks()
    conductor.run_missing()
    conductor.tabulate()
    for name, reason in conductor.failed.items():
        print(f"study: {name} failed: {reason}", file=sys.stderr)
    print(args.out / "study.md", args.out / "study.html", sep="\n")
    return EXIT_STOPPED if stop.asked else int(bool(conductor.failed))


class Stop:
    """A request to stop, passed on to the subprocess at work. In the main thread only."""

    def __init__(self) -> None:
        self.asked = 0
        self._process: subprocess.Popen[bytes] | None = None
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def run(self, command: Sequence[object], log: Path, folder: Path, watch: Callable[[], None]) -> int:
        """A subprocess that works in `folder`, to its end, its output appended to `log`; its exit code.

        `watch` is called every second meanwhile. Terminal signals reach this process alone, which passes them on.
        """
        with named(log), log.open("ab") as output:
            output.write(f"$ {' '.join(map(str, command))}\n".encode())
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(map(str, command)),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=marked(folder),
                start_new_session=True,
            )
            if self.asked:  # asked before there was a process to pass it on to
                self._process.terminate()
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return self._process.wait(POLL_SECONDS)
                watch()

    def _hear(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.asked += 1
        if self._process is not None:
            self._process.terminate()


class Conductor:
    """Carries out the runs of a study one after another, beside other processes that do the same."""

    def __init__(self, study: Study, args: argparse.Namespace, stop: Stop) -> None:
        self.study, self.args, self.stop = study, args, stop
        self.runs = runs_of(study, args.study, args.data, args.set)
        self.failed: dict[str, str] = {}
        self._done: set[str] = set()

    def check(self) -> None:
        """Refuse what would fail after hours.

        Raises:
            StudyError, RecipeError, ShardError, ValueError: naming what does not fit.
        """
        places = dict.fromkeys(self.study.shards_of(run.arm) for run in self.runs)
        manifests = {place: ShardSet(self.args.data / place).manifest for place in places}
        work = []
        for run in self.runs:
            manifest = manifests[self.study.shards_of(run.arm)]
            size = manifest.image_height, manifest.image_width
            check_against_set(
                run.recipe,
                samples=manifest.samples,
                identities=manifest.identities,
                image_size=size,
                num_ranks=self.args.ranks,
            )
            _require_same(self._folder(run), run, manifest.digest)
            work.append(work_of(run.recipe, size))
        for pairs in self.study.sets.values():
            read_pairs(self.args.data / pairs.pairs, self.args.data / pairs.images)
        for name, network in self.study.networks.items():
            if not (self.args.data / network.file).exists():
                raise StudyError(f"networks.{name}: got {self.args.data / network.file}, wanted a file that is there")
        self._progress = ProgressLine(work, self._shares())

    def judge_networks(self) -> None:
        """Evaluate the networks from elsewhere on every set; one that another process is at is left to it."""
        for name, network in self.study.networks.items():
            folder = self.args.out / name
            with contextlib.suppress(HeldError), self._held(folder):
                for what, evaluate in self._evaluations(folder):
                    command = [*evaluate, *network.options(self.args.data)]
                    if reason := self._run(what, command, folder, lambda: None):
                        self._fail(name, reason)
            if self.stop.asked:
                return

    def run_missing(self) -> None:
        """Train and evaluate until every run is done or has failed, or until asked to stop."""
        while missing := [run for run in self.runs if run.name not in self.failed and not self._is_done(run)]:
            taken = 0
            for run in missing:
                with contextlib.suppress(HeldError), self._held(self._folder(run)):
                    if not self._is_done(run):
                        taken += 1
                        sweep(self._folder(run))  # what a process that was killed here has left at work
                        self._carry_out(run)
                if self.stop.asked:
                    return
            if not taken:
                self._progress.show(f"other processes are at the last {len(missing)}", self._shares())
                time.sleep(POLL_SECONDS)

    def _held(self, folder: Path) -> AbstractContextManager[None]:
        """Holds a run's or network's folder while it is open, against other processes like this one."""

        def lose(reason: str) -> None:
            sweep(folder)
            end(f"study: {reason}")

        return leased(folder / CLAIMS, Holder(shlex.join(sys.argv)), lose)

    def _carry_out(self, run: Run) -> None:
        """Train to the end, then evaluate on every set; a failure is noted."""
        for what, command in self._commands(run):
            if what == "training" and self._trained(run):
                continue
            reason = self._run(what, command, self._folder(run), partial(self._show, run, what))
            if self.stop.asked:
                return None
            if reason:
                return self._fail(run.name, reason)
        if not self._is_done(run):
            return self._fail(run.name, f"its results cannot be read: {RunFolder(self._folder(run)).evaluations}")
        self.tabulate()
        self._progress.say(f"{run.name} done")
        return None

    def _run(self, what: str, command: Sequence[object], folder: Path, watch: Callable[[], None]) -> str:
        """Carry out one command in a run's or network's folder; why it failed, empty if it did not or was stopped."""
        log = folder / "study.log"
        code = self.stop.run(command, log, folder, watch)
        if not code or self.stop.asked:
            return ""
        last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        return f"{what} ended with code {code}: {last} (more in {log})"

    def _fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        self._progress.say(f"{name} failed: {reason}")

    def _commands(self, run: Run) -> list[tuple[str, list[object]]]:
        """What is done for a run, in order."""
        folder, recipe = self._folder(run), self.args.study.parent / self.study.recipe
        changes: list[object] = []
        for change in run.changes:
            changes += ["--set", change]
        start = [
            sys.executable,
            STAGES / "supervise.py",
            "--ranks",
            self.args.ranks,
            "--master-port",
            free_port(),
            "--",
        ]
        commands = [("training", [*start, "--recipe", recipe, "--run", folder, *changes])]
        for what, evaluate in self._evaluations(folder):
            commands.append((what, [*evaluate, "--step", run.recipe.optimizer.steps]))
        return commands

    def _evaluations(self, folder: Path) -> list[tuple[str, list[object]]]:
        """The commands that evaluate what is in a folder on each set."""
        commands = []
        for name, places in self.study.sets.items():
            where = ["--images", self.args.data / places.images, "--pairs", self.args.data / places.pairs]
            evaluate = [sys.executable, STAGES / "evaluate.py", folder, *where, "--name", name]
            commands.append((f"evaluation on {name}", evaluate))
        return commands

    def tabulate(self) -> None:
        """Write the tables of what is there."""
        samples: dict[str, dict[tuple[str, int], Draws]] = {name: {} for name in self.study.sets}
        for name, run in product(self.study.sets, self.runs):
            if self._is_done(run):
                samples[name][run.arm, run.seed] = _draws(self._result(run, name), self.args.resamples)
        for (name, places), network in product(self.study.sets.items(), self.study.networks):
            result = result_file(RunFolder(self.args.out / network).evaluations / name, 0)
            if _evaluated(result, _digest(self.args.data / places.pairs)):
                samples[name][network, 0] = _draws(result, self.args.resamples)
        with locked(self.args.out / "tables.lock"):  # others may write them too
            write_tables(self.study, samples, self.args.out, self._over_chance())

    def _over_chance(self) -> dict[str, float]:
        """Of each run that is done, its loss over that of guessing: the mean of the last rows of its log."""
        done = [run.name for run in self.runs if self._is_done(run)]
        ratios = {name: _last_over_chance(RunFolder(self.args.out / name).metrics) for name in done}
        return {name: ratio for name, ratio in ratios.items() if ratio is not None}

    def _is_done(self, run: Run) -> bool:
        """Whether it is trained, and evaluated on these very pairs."""
        if run.name not in self._done and self._trained(run):
            digests = {name: _digest(self.args.data / places.pairs) for name, places in self.study.sets.items()}
            if all(_evaluated(self._result(run, name), digest) for name, digest in digests.items()):
                self._done.add(run.name)
        return run.name in self._done

    def _trained(self, run: Run) -> bool:
        return has_reached(self._folder(run), run.recipe.optimizer.steps)

    def _folder(self, run: Run) -> Path:
        folder: Path = self.args.out / run.name
        return folder

    def _result(self, run: Run, name: str) -> Path:
        return result_file(RunFolder(self._folder(run)).evaluations / name, run.recipe.optimizer.steps)

    def _shares(self) -> list[float]:
        """How much of each run is done."""
        return [1.0 if run.name in self._done else self._step(run) / run.recipe.optimizer.steps for run in self.runs]

    def _step(self, run: Run) -> int:
        return last_step(RunFolder(self._folder(run)).metrics)

    def _show(self, run: Run, what: str) -> None:
        at = f", step {self._step(run):,} of {run.recipe.optimizer.steps:,}" if what == "training" else ""
        here = f"{len(self._done)} of {len(self.runs)} runs done; {run.name}: {what}{at}"
        self._progress.show(here, self._shares())


def work_of(recipe: Recipe, image_size: tuple[int, int]) -> float:
    """Multiply-adds of a run's backbone: what its time is estimated by."""
    return float(recipe.optimizer.steps * recipe.data.global_batch * _macs(recipe.backbone, image_size))


@cache
def _macs(backbone: Backbone, image_size: tuple[int, int]) -> int:
    with torch.device("meta"):
        return count_macs(backbone.build(image_size), image_size)


@cache
def _draws(file: Path, resamples: int) -> Draws:
    return accuracy_draws(load(file).pairs, resamples)


@cache
def _last_over_chance(log: Path) -> float | None:
    _, values = series(read_metrics(log), "loss_over_chance_ratio")
    return float(values[-LAST_ROWS:].mean()) if len(values) else None


def _evaluated(file: Path, pairs_sha256: str) -> bool:
    try:
        return load(file).summary.settings.pairs_sha256 == pairs_sha256
    except ValueError:
        return False


def _require_same(folder: Path, run: Run, shards_digest: str) -> None:
    """Refuse to mix a run that was begun with another recipe or other faces into the study."""
    if not RunFolder(folder).facts.exists():
        return
    changed = differences(RunFolder(folder).recipe, run.recipe)
    if json.loads(RunFolder(folder).facts.read_text())["shards"]["digest"] != shards_digest:
        changed.append("the shards are others")
    if changed:
        raise StudyError(
            f"{folder}: began with {'; '.join(changed)}: wanted the same, or another --out, or no such folder"
        )


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="STUDY", help="YAML file; see stages/studies/")
    parser.add_argument(
        "--data", type=Path, default=Path(), metavar="FOLDER", help="what the study's shards, images and pairs are in"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of runs and tables (default runs/study-NAME)")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="of every run, on this machine (default 1)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one key of every recipe; repeatable"
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the intervals (default 1000)")
    return parser


if __name__ == "__main__":
    exit_with(main)
