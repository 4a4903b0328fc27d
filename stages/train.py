#!/usr/bin/env python
"""Stage 2: train a backbone and its split classifier on shards.

  deepspeed stages/train.py --recipe stages/recipes/casia_sphereface20.yaml --run runs/casia20 \
      --set data.shards=/data/casia-shards

One node: `deepspeed --num_gpus 8 stages/train.py ...`; on CPUs, --num_gpus is the number of ranks.
Many nodes: `deepspeed --hostfile hosts --master_addr HOST stages/train.py ...`.

The run's folder holds recipe.yaml (as resolved), run.json (command, versions), metrics.jsonl and checkpoints/.
A rank that hears SIGINT, SIGTERM, SIGUSR1 or SIGHUP, or whose deepspeed command has gone, makes all finish the step,
save and exit with code 75; the same command then goes on. The deepspeed command itself does not wait for that:
stages/supervise.py does. Code 65: recipe, shards, folder or numbers are refused. Code 69: a rank or its host was lost,
or never came. Code 74: the last save failed. After these two stages/supervise.py starts again, on what is left.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cluster.collectives import gather_objects
from cluster.metrics import METRICS, evaluation_metrics
from cluster.process_group import Together, device_of, process_group, refuse
from cluster.rendezvous import DisagreeError, StartError
from cluster.stop import EXIT_LOST, EXIT_REFUSED, EXIT_STOPPED, EXIT_UNSAVED, StopRequest, exit_with, leave
from cluster.stopwatch import STARTUP
from cluster.telemetry import Telemetry, Tls
from cluster.topology import Topology
from cluster.versions import code_digest, versions
from cluster.watchdog import Watchdog, end
from pipeline.evaluation.sets import VerificationSet, is_finished, sets_of
from pipeline.reading.tars import ShardSet
from pipeline.recipe.file import describe_recipe, load_recipe
from pipeline.recipe.schema import Recipe, RecipeError, check_against_set
from pipeline.run.changes import changes, flat
from pipeline.run.checkpoint import CheckpointError, complete_steps, newest_whole
from pipeline.run.folder import RunFolder
from pipeline.run.record import record_run, restarts_of
from pipeline.shards.manifest import ShardError
from pipeline.training.errors import NonFiniteError, UnsavedError

if TYPE_CHECKING:
    from pipeline.evaluation.in_training import Evaluator
    from pipeline.training.loop import Record, Trainer

logger = logging.getLogger("train")

# Errors of what was given: the next start would end alike.
REFUSALS = (RecipeError, ShardError, CheckpointError)


def parse() -> argparse.Namespace:
    """The command line; what it decides beyond the recipe is where the run lives and whether it goes on."""
    parser = argparse.ArgumentParser(
        prog="deepspeed stages/train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, help="YAML file; see stages/recipes/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key; repeatable")
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/<recipe's name>)")
    parser.add_argument(
        "--resume",
        choices=["auto", "never"],
        default="auto",
        help="auto (default): go on from the newest complete checkpoint of the run's folder; "
        "never: refuse a folder that holds a run",
    )
    parser.add_argument("--help-recipe", action="store_true", help="print every key of a recipe and exit")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher passes it
    arguments = parser.parse_args()
    if arguments.help_recipe:
        print(describe_recipe())
        raise SystemExit(0)
    if arguments.recipe is None:
        parser.error("--recipe is required, for example stages/recipes/demo.yaml")
    return arguments


def main() -> int:
    """Check everything that can be checked alone, then meet the other ranks and train."""
    STARTUP.done("imports")
    arguments = parse()
    topology = Topology.from_environment(os.environ)
    logging.basicConfig(
        level=logging.INFO if topology.rank == 0 else logging.WARNING,
        format=f"[rank {topology.rank}] %(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("DeepSpeed", "torch.distributed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    run: Path = arguments.run or Path("runs") / arguments.recipe.stem
    try:
        plan = make_plan(arguments, run, topology)
    except REFUSALS as error:
        say(topology, str(error))
        refuse(topology, str(error))
        leave(EXIT_REFUSED)  # torch may still be trying to connect
    if is_finished(run, plan.recipe, plan.sets):
        if topology.rank == 0:
            print(f"train.py: {run} is finished: {plan.recipe.optimizer.steps} steps; nothing to do", file=sys.stderr)
        return 0
    try:
        return train(plan, run, topology)
    except (*REFUSALS, NonFiniteError, DisagreeError) as error:
        say(topology, str(error))
        return EXIT_REFUSED
    except StartError as error:
        say(topology, str(error))
        leave(EXIT_LOST)  # as above
    except UnsavedError as error:
        say(topology, str(error))
        return EXIT_UNSAVED


@dataclass(frozen=True)
class Plan:
    """What to train on what, read and checked; and what changed in the recipe since the run in its folder began."""

    recipe: Recipe
    shards: ShardSet
    sets: Sequence[VerificationSet]
    changed: list[str]


def make_plan(arguments: argparse.Namespace, run: Path, topology: Topology) -> Plan:
    """All that a rank can check before it meets the others. Raises one of `REFUSALS`."""
    recipe = load_recipe(arguments.recipe, arguments.set)
    shards = ShardSet(recipe.data.shards)
    manifest = shards.manifest
    check_against_set(recipe, samples=manifest.samples, identities=manifest.identities, num_ranks=topology.num_ranks)
    endpoint_tls(recipe)
    saved = complete_steps(run)
    if saved and arguments.resume == "never":
        raise CheckpointError(f"{run}: holds checkpoints up to step {saved[-1]}; wanted an empty folder")
    return Plan(recipe, shards, sets_of(recipe), changes(run, recipe) if saved else [])


def say(topology: Topology, reason: str) -> None:
    """Why this ends. Ranks of one host have the same reason, other hosts may have another: one rank of each speaks."""
    if topology.rank_of_node == 0:
        several = topology.num_ranks > topology.ranks_of_node
        print(f"train.py{f' on {socket.gethostname()}' if several else ''}: {reason}", file=sys.stderr)


def train(plan: Plan, run: Path, topology: Topology) -> int:
    """Train from the newest checkpoint to the end; returns the exit code."""
    recipe, shards, sets = plan.recipe, plan.shards, plan.sets
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it, also where one rank needs no launcher
    stop = StopRequest()
    device = device_of(topology)
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if topology.num_ranks > 1:
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        say(topology, f"meeting: {topology.num_ranks} ranks at {where}, within {recipe.timeout_seconds:g} s")
    with process_group(topology, device, recipe.timeout_seconds, facts_to_agree_on(recipe, shards, sets)) as together:
        STARTUP.done("meeting")
        # DeepSpeed and DALI take seconds to import: ranks that do not agree are refused before.
        from pipeline.evaluation.in_training import Evaluator
        from pipeline.training.loop import Trainer

        torch.use_deterministic_algorithms(recipe.deterministic, warn_only=True)  # which imports torch's compiler
        STARTUP.done("more imports")
        trainer = Trainer(recipe, shards, run, topology, together.group, device)
        STARTUP.done("building")
        newest = newest_whole(run, together.group)
        STARTUP.done("checking")
        if newest is not None:
            trainer.resume(newest)
            logger.info("resumed %s at step %d", run, trainer.step)
            for change in plan.changed:
                logger.warning("the recipe changed since: %s", change)
        elif recipe.init.run is not None:
            inherited = trainer.inherit(recipe.init.run, recipe.init.step, recipe.init.new_rows)
            logger.info("start from %s: %s", recipe.init.run, inherited)
        evaluator = Evaluator(trainer, sets)
        evaluator.check()
        STARTUP.done("loading")
        restarts = gather_objects(restarts_of(run), together.group)[0]
        if topology.rank == 0:
            record_run(run, recipe, shards, command_of(topology), topology.num_ranks, device, restarts)
        stop.defer()
        watched_train(trainer, evaluator, together, stop, restarts)
    if trainer.step < recipe.optimizer.steps and stop.asked:
        logger.warning("stopped by %s after %s; the same command goes on", stop.asked, place(run, trainer.step))
    return 0 if trainer.step == recipe.optimizer.steps else EXIT_STOPPED


def place(run: Path, step: int) -> str:
    """Where a run that was stopped stands. (A step whose rows moved before it turned out bad is not saved.)"""
    newest = complete_steps(run)[-1]
    kept = "saved" if newest == step else f"a bad one; it goes back to the checkpoint of step {newest}"
    return f"step {step}, {kept}"


def watched_train(trainer: Trainer, evaluator: Evaluator, together: Together, stop: StopRequest, restarts: int) -> None:
    """Train and evaluate, showing and exporting both; a rank that is lost ends this process, named."""
    from pipeline.training.watch import Exporter, MetricsFile, Progress, Window

    recipe, topology = trainer.recipe, trainer.topology
    window = Window(recipe.log.every)
    first = topology.rank == 0
    metrics = MetricsFile(RunFolder(trainer.run).metrics, trainer.step) if first else None
    progress = Progress(recipe.optimizer.steps) if first else None
    watchdog = Watchdog(together.store, topology, recipe.faults.step_seconds)
    trainer.saver.patience = watchdog.patient
    with (
        Telemetry(
            rank=topology.rank,
            host=socket.gethostname(),
            job=trainer.run.name,
            cuda_device=trainer.device.index,
            folder=trainer.run,
            metrics=METRICS + evaluation_metrics(list(recipe.evaluation.sets)),
        ) as telemetry,
        contextlib.closing(progress) if progress else contextlib.nullcontext(),
        watchdog,
        naming_lost_ranks(watchdog),
    ):
        exporter = Exporter(telemetry, trainer, restarts)
        serve(telemetry, recipe, topology, trainer.run)  # after all that is known is set: the first scrape is whole

        def evaluate() -> None:
            with watchdog.patient("an evaluation"):
                found = evaluator.evaluate()
            exporter.export_evaluation(found)
            if metrics and progress:
                metrics.write_evaluation(found)
                progress.show_evaluation(found)
                for fault in found.faults:
                    logger.warning("step %d: not evaluated: %s", found.step, fault)

        evaluator.look_back()
        if recipe.evaluates_after(trainer.step):  # it was stopped, or killed, between the save and the evaluation
            evaluate()
        for record in telling_of_the_first(trainer.train(lambda: bool(stop.asked))):
            watchdog.tick(record.step)
            window.add(record)
            exporter.export(record)
            shown = record.step % recipe.log.every == 0 or record.stall_seconds is not None
            if metrics and progress and shown and not record.skipped:
                metrics.write(record, window)
                progress.show(record, window)
            saved = record.stall_seconds is not None  # a step that is gone back from is not
            if recipe.evaluates_after(record.step) and saved and not record.stopping:
                evaluate()


def telling_of_the_first(records: Iterator[Record]) -> Iterator[Record]:
    """Pass the records on; after the first, log what lay before it, part by part."""
    for number, record in enumerate(records):
        if number == 0:
            STARTUP.done("first step")
            logger.info("first step done after %s", STARTUP)
        yield record


@contextlib.contextmanager
def naming_lost_ranks(watchdog: Watchdog) -> Iterator[None]:
    """End the process, naming who is gone, at an error that comes of a rank that is; any other error passes."""
    try:
        yield
    except NonFiniteError:  # agreed by all: nobody is lost
        raise
    except RuntimeError as error:  # what a collective raises when its peer is gone
        what = watchdog.explain(str(error).strip().split("\n")[0])
        if "silent" not in what:
            raise
        end(what)


def serve(telemetry: Telemetry, recipe: Recipe, topology: Topology, run: Path) -> None:
    """Start this rank's endpoint where the recipe wants one, and tell Prometheus where it is."""
    if recipe.log.metrics_port is None:
        return
    port = recipe.log.metrics_port + topology.rank_of_node if recipe.log.metrics_port else 0
    if telemetry.serve(port, recipe.log.metrics_address, endpoint_tls(recipe)) is not None:
        telemetry.announce(RunFolder(run).targets, topology.num_ranks)


def endpoint_tls(recipe: Recipe) -> Tls | None:
    """How the endpoints are read over TLS; None where they are not. Raises RecipeError for files that do not serve."""
    log = recipe.log
    if log.metrics_certificate is None or log.metrics_key is None:
        return None
    tls = Tls(log.metrics_certificate, log.metrics_key, log.metrics_client_ca)
    try:
        tls.check()
    except ValueError as error:
        raise RecipeError(f"log.metrics_{error}") from None
    return tls


def command_of(topology: Topology) -> str:
    """What repeats this start, as it is typed."""
    arguments = [argument for argument in sys.argv if not argument.startswith("--local_rank")]
    launcher = ["deepspeed", "--num_gpus", str(topology.ranks_of_node)] if topology.num_ranks > 1 else ["python"]
    return shlex.join(launcher + arguments)


def facts_to_agree_on(recipe: Recipe, shards: ShardSet, sets: Sequence[VerificationSet]) -> dict[str, str]:
    """What must be the same on every rank, or they would train different things."""
    same = {f"version of {name}": version for name, version in versions().items()}
    same |= {"code": code_digest(Path(__file__).parents[1]), "shards' manifest": shards.manifest.digest[:12]}
    keys = {f"recipe {key}": str(value) for key, value in flat(recipe.model_dump(mode="json")).items()}
    pairs = {f"pairs of {chosen.name}": chosen.sha256[:12] for chosen in sets}
    return same | keys | pairs


if __name__ == "__main__":
    exit_with(main)
