#!/usr/bin/env python
"""Stage 2: train a backbone and its split classifier on shards.

  deepspeed stages/train.py --recipe stages/recipes/casia_sphereface20.yaml --run runs/casia20 \\
      --set data.shards=/data/casia-shards

One node: `deepspeed --num_gpus 8 stages/train.py ...`; on CPUs, --num_gpus is the number of ranks.
Many nodes: `deepspeed --hostfile hosts --master_addr HOST stages/train.py ...`.
torchrun, srun, mpirun and, for one rank, plain python start the same run: see docs/many_nodes.md.

The run's folder holds recipe.yaml (as resolved), run.json (command, versions), history.jsonl (a line for each start),
metrics.jsonl and checkpoints/.
When a rank gets SIGINT, SIGTERM, SIGUSR1 or SIGHUP, or its deepspeed command has ended, all ranks finish the step, save
and exit with code 75; the same command then resumes the run. The deepspeed command itself does not wait for that:
stages/supervise.py does. Code 65: recipe, shards, folder or numbers are refused. Code 69: a rank or its host was lost,
or did not come in time. Code 74: the first or last save failed, or the disk did not give the checkpoint to resume from.
After 69 and 74 stages/supervise.py starts again, on the hosts that answer.
"""

from __future__ import annotations

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import contextlib
import logging
import os
import shlex
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.algorithms import choose_algorithms, computes_in_bfloat16, keep_compiled
from cluster.lease import HeldError, Holder, leased
from cluster.marks import ATTEMPT_VARIABLE, START_VARIABLE
from cluster.ranks.collectives import Group, barrier, gather_objects, rank_in
from cluster.ranks.process_group import device_of, process_group, refuse
from cluster.ranks.reasons import Reasons
from cluster.ranks.rendezvous import DisagreeError, StartError
from cluster.ranks.topology import Topology, TopologyError
from cluster.ranks.watchdog import Watchdog, end
from cluster.stop import (
    EXIT_LOST,
    EXIT_REFUSED,
    EXIT_STOPPED,
    EXIT_UNSAVED,
    StopRequest,
    code_of,
    exit_with,
    leave,
    tell,
)
from cluster.stopwatch import STARTUP
from pipeline.files import NotWrittenError, named
from pipeline.recipe.file import describe_recipe
from pipeline.recipe.schema import Recipe, RecipeError
from pipeline.run.checkpoint import CheckpointError, complete_steps
from pipeline.run.folder import RunFolder
from pipeline.run.history import Begun, has_begun, has_gone_back, note_start
from pipeline.run.record import record_run, restarts_of
from pipeline.run.set_aside import set_aside
from pipeline.run.whole import newest_whole, whole_step
from pipeline.shards.format.manifest import ShardError
from pipeline.training.guard import NonFiniteError
from pipeline.training.saves import UnsavedError
from pipeline.training.start import Start, check_start, read_start

if TYPE_CHECKING:
    import torch

    from pipeline.training.loop import Trainer

logger = logging.getLogger("train")

# Errors of what was given: the next start would end in the same way.
REFUSALS = (RecipeError, ShardError, CheckpointError)


def parse() -> argparse.Namespace:
    """The command line; what it decides beyond the recipe is the run's folder and whether to resume."""
    parser = argparse.ArgumentParser(
        prog="deepspeed stages/train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, help="YAML file; see stages/recipes/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key; repeatable")
    parser.add_argument(
        "--run",
        "--run-folder",  # torchrun takes --run for the beginning of an option of its own
        type=Path,
        help="folder of the run (default: runs/<recipe's name>); under torchrun say --run-folder",
    )
    parser.add_argument(
        "--resume",
        choices=["auto", "never"],
        default="auto",
        help="auto (default): resume from the newest complete checkpoint of the run's folder; "
        "never: refuse a folder that holds a run, unless a start of the same supervisor began it",
    )
    parser.add_argument(
        "--from-step",
        type=int,
        metavar="N",
        help="go back to the checkpoint of step N and train on from there; later ones and their results are moved to "
        "RUN/left/",
    )
    parser.add_argument(
        "--help-recipe",
        nargs="?",
        const="",
        metavar="KEY",
        help="print every key of a recipe, or those of KEY, and exit",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher passes it
    arguments = parser.parse_args()
    if arguments.help_recipe is not None:
        try:
            print(describe_recipe(arguments.help_recipe))
        except RecipeError as error:
            parser.error(str(error))
        raise SystemExit(0)
    if arguments.recipe is None:
        parser.error("--recipe is required, for example stages/recipes/demo.yaml")
    return arguments


def main() -> int:
    """Check everything that can be checked alone, then meet the other ranks and train."""
    STARTUP.done("imports")
    arguments = parse()
    try:
        topology = Topology.from_environment(os.environ)
    except TopologyError as error:
        tell(f"train.py: {error}")
        return EXIT_REFUSED
    reasons = Reasons("train.py", topology)
    os.environ.update(topology.to_environment())  # DeepSpeed reads them, also those of one rank without a launcher
    logging.basicConfig(
        level=logging.INFO if topology.rank == 0 else logging.WARNING,
        format=f"[rank {topology.rank}] %(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("DeepSpeed", "torch.distributed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        start = read_start(arguments.recipe, arguments.set, arguments.run, arguments.from_step)
        may_resume = arguments.resume == "auto" or has_begun(start.run, start_mark())
        changed = check_start(start, topology.num_ranks, may_resume)
    except REFUSALS as error:
        reasons.say(str(error))
        refuse(topology, str(error))
        leave(EXIT_REFUSED)  # torch may still be trying to connect
    if start.is_finished:
        if topology.rank == 0:
            tell(f"train.py: {finished(start.run, changed)}")
        return 0
    with contextlib.ExitStack() as claim:
        try:
            with named(RunFolder(start.run).claims):
                claim.enter_context(claim_of(start, topology))
        except HeldError as error:
            reason = f"{error}; wanted one trainer in a folder: stop it, or choose another folder with --run"
            reasons.say(reason)
            refuse(topology, reason)
            leave(EXIT_REFUSED)
        except NotWrittenError as error:
            reasons.say(str(error))
            refuse(topology, str(error))
            leave(code_of(error))
        try:
            return train(start, changed, topology, reasons)
        except (*REFUSALS, NonFiniteError, DisagreeError) as error:
            reasons.say(str(error))
            return EXIT_REFUSED
        except StartError as error:
            reasons.say(str(error))
            claim.close()
            leave(EXIT_LOST)  # as above
        except UnsavedError as error:
            reasons.say(str(error))
            return EXIT_UNSAVED
        except NotWrittenError as error:
            reasons.say(str(error))
            return code_of(error)


def claim_of(start: Start, topology: Topology) -> AbstractContextManager[None]:
    """Holds the run's folder while it is open, on the first rank."""
    if topology.rank != 0:
        return contextlib.nullcontext()
    me = Holder(command_of(topology), start_mark(), int(os.environ.get(ATTEMPT_VARIABLE, "0")))
    return leased(RunFolder(start.run).claims, me, end)


def start_mark() -> str:
    """What all starts of one supervisor share; empty without one."""
    return os.environ.get(START_VARIABLE, "")


def train(start: Start, changed: list[str], topology: Topology, reasons: Reasons) -> int:
    """Train from the newest checkpoint to the end; returns the exit code."""
    recipe = start.recipe
    stop = StopRequest()
    device = device_of(topology)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would warn, on every rank, that it found no other
    if topology.num_ranks > 1:
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        if topology.rank_of_node == 0:
            reasons.say(f"meeting: {topology.num_ranks} ranks at {where}, within {recipe.timeout_seconds:g} s")
    with process_group(topology, device, recipe.timeout_seconds, start.facts()) as together:
        reasons.met(together.store)
        STARTUP.done("meeting")
        # DeepSpeed and DALI take seconds to import: ranks that do not agree are refused before.
        from pipeline.training.evaluator import Evaluator
        from pipeline.training.loop import Trainer
        from pipeline.training.observed import train_observed
        from pipeline.training.observers import observers_of
        from pipeline.training.observers.goodput import read_account

        prepare_libraries(recipe, topology, device)
        STARTUP.done("more imports")
        trainer = Trainer(recipe, start.shards, start.run, topology, together.group, device)
        STARTUP.done("building")
        newest, left = step_to_resume(start, together.group)
        STARTUP.done("checking")
        changed = load(trainer, start, newest, changed)
        evaluator = Evaluator(trainer, start.sets)
        evaluator.check()
        STARTUP.done("loading")
        logger.info("%s", recipe.optimizer.rate_in_words(recipe.data.global_batch))
        past = restarts_of(start.run), read_account(RunFolder(start.run).goodput, STARTUP.began)
        restarts, account = gather_objects(past, together.group)[0]
        if topology.rank == 0:
            command = command_of(topology)
            begun = Begun(
                trainer.step, command, start_mark(), topology.num_ranks, device, start.from_step, changed, left
            )
            try:
                record_run(start.run, recipe, start.shards, command, topology.num_ranks, device, restarts)
                note_start(start.run, recipe, start.shards.manifest, begun)
            except NotWrittenError as error:  # a run that resumes has them; a new one ends at its first save
                logger.warning("%s; training continues", error)
        stop.defer()
        stacks = RunFolder(start.run).stacks
        watchdog = Watchdog(together.store, topology, recipe.faults.step_seconds, stacks=stacks)
        observers = observers_of(trainer, restarts, account)
        evaluation_left = train_observed(trainer, evaluator, observers, watchdog, lambda: bool(stop.asked))
    if trainer.step >= recipe.optimizer.steps and not evaluation_left:  # more steps, if the recipe now wants fewer
        logger.info("finished: step %d, in %s", trainer.step, RunFolder(start.run).checkpoint(trainer.step))
        return 0
    asked = stop.asked or "a signal to another rank"
    logger.warning("stopped by %s after %s; the same command resumes it", asked, place(start.run, trainer.step))
    return EXIT_STOPPED


def prepare_libraries(recipe: Recipe, topology: Topology, device: torch.device) -> None:
    """Choose the libraries' algorithms, and say if the recipe's precision costs time instead of saving it."""
    if recipe.backbone.compile:
        keep_compiled()
    choose_algorithms(recipe.deterministic, recipe.backbone.compile)
    if topology.rank_of_node == 0 and recipe.precision == "bfloat16" and not computes_in_bfloat16(device):
        logger.warning("precision: bfloat16 is emulated on this %s: float32 is faster here", device.type.upper())


def load(trainer: Trainer, start: Start, newest: int | None, changed: list[str]) -> list[str]:
    """Resume from the checkpoint of the step, or begin as the recipe says; what has changed since, `changed` included.

    All ranks together.
    """
    recipe = start.recipe
    if newest is not None:
        changed = [*changed, *trainer.resume(newest)]
        logger.info("resumed %s at step %d", start.run, trainer.step)
        for change in changed if rank_in(trainer.group) == 0 else ():  # ranks agree on all of it
            logger.warning("changed since: %s", change)
    elif recipe.init.run is not None:
        inherited = trainer.inherit(recipe.init.run, recipe.init.step, recipe.init.new_rows)
        logger.info("start from %s: %s", recipe.init.run, inherited)
    return changed


def step_to_resume(start: Start, group: Group) -> tuple[int | None, list[int]]:
    """The step to resume from, None for a new run; and the steps that are left for that. All ranks together."""
    done = start.from_step is None or has_gone_back(start.run, start.from_step, start_mark())
    if gather_objects(done, group)[0]:
        return newest_whole(start.run, group), []
    step = whole_step(start.run, start.from_step, group)
    left = set_aside(start.run, step) if rank_in(group) == 0 else []
    barrier(group)  # others must not see what is being moved
    return step, left


def finished(run: Path, changed: list[str]) -> str:
    """Why nothing is trained, and what of the recipe has not been: many a run is started again for a change to it."""
    untrained = f"; changed since, and not trained: {', '.join(changed)}" if changed else ""
    done = complete_steps(run)[-1]
    return f"{run} is finished: {done} steps; nothing to do; to train another, choose a folder with --run{untrained}"


def place(run: Path, step: int) -> str:
    """At which step a run was stopped, and what is saved: a step whose rows moved before it turned out bad is not."""
    newest = max((saved for saved in complete_steps(run) if saved <= step), default=0)
    kept = "saved" if newest == step else f"a bad one; it resumes from the checkpoint of step {newest}"
    return f"step {step}, {kept}"


def command_of(topology: Topology) -> str:
    """The command that repeats this start."""
    arguments = [argument for argument in sys.argv if not argument.startswith("--local_rank")]
    launcher = ["deepspeed", "--num_gpus", str(topology.ranks_of_node)] if topology.num_ranks > 1 else ["python"]
    return shlex.join(launcher + arguments)


if __name__ == "__main__":
    exit_with(main)
