#!/usr/bin/env python
"""Train, and start again on what is left when a host or a rank is lost.

  python stages/supervise.py --hostfile hosts -- --recipe stages/recipes/casia_sphereface20.yaml --run runs/casia20
  python stages/supervise.py --ranks 8 -- --recipe ... --run ...        (this machine alone)

What stands after `--` goes to stages/train.py. Before each start every host of the hostfile is asked if it answers:
one that does not is left out, one that is back takes part again. The number of ranks is the largest that the recipe's
global batch can be split over; training goes on from the newest whole checkpoint, along the same trajectory.

Exit codes: 0 trained to the end; 75 asked to stop, saved; 1 given up (the reason is the last line).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from cluster.hosts import KEEP_ALIVE, SSH_ARGUMENTS, answering, assign, read_hostfile
from cluster.stop import EXIT_STOPPED
from cluster.supervision import GiveUpError, Restarts
from pipeline.config import Recipe, RecipeError, check_against_set, load_recipe
from pipeline.reading.tars import ShardSet
from pipeline.shards.errors import ShardError
from pipeline.training.checkpoint import complete_steps

TRAIN = Path(__file__).with_name("train.py")


def parse() -> argparse.Namespace:
    """The command line: where to run, how often to start again, and the arguments of train.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--hostfile", type=Path, help="lines of 'host slots=N', as deepspeed reads them")
    where.add_argument("--ranks", type=int, help="ranks on this machine, without ssh")
    parser.add_argument("--min-ranks", type=int, default=1, help="wait for hosts rather than start with fewer")
    parser.add_argument("--master-port", type=int, default=29500, help="the next port is taken at each start")
    parser.add_argument(
        "--probe-seconds", type=float, default=15, help="a host that takes longer to answer is left out"
    )
    parser.add_argument("--max-restarts", type=int, default=50, help="give up after as many")
    parser.add_argument("--same-step", type=int, default=3, help="give up after as many failures in a row at one step")
    parser.add_argument(
        "--wait-seconds", type=float, default=5, help="before the first restart; doubles without progress"
    )
    parser.add_argument(
        "--export", action="append", default=[], metavar="NAME=VALUE", help="set on every host; repeatable"
    )
    parser.add_argument("train", nargs=argparse.REMAINDER, help="-- and the arguments of train.py")
    return parser.parse_args()


def main() -> int:
    """Start, watch, and start again; returns the exit code."""
    args = parse()
    passed_on = [argument for argument in args.train if argument != "--"]
    try:
        recipe, run = recipe_and_run(passed_on)
        shards = ShardSet(recipe.data.shards)
        hosts = read_hostfile(args.hostfile) if args.hostfile else {"localhost": args.ranks}
    except (RecipeError, ShardError, ValueError, OSError) as error:
        return give_up(str(error))

    def fits(ranks: int) -> bool:
        try:
            manifest = shards.manifest
            check_against_set(recipe, samples=manifest.samples, identities=manifest.identities, num_ranks=ranks)
        except RecipeError:
            return False
        return ranks >= args.min_ranks

    restarts = Restarts(args.max_restarts, args.same_step, args.wait_seconds)
    launcher = Launcher()
    for attempt in range(args.max_restarts + 2):
        there = answering(hosts, args.probe_seconds) if args.hostfile else hosts
        for host in hosts.keys() - there.keys():
            say(f"{host} does not answer: left out")
        ranks = assign(there, fits)
        if ranks:
            say(f"start {attempt + 1} on {', '.join(f'{host} ({n})' for host, n in ranks.items())}")
            code = launcher.run(ranks, args.hostfile is not None, args.master_port + attempt, args.export, passed_on)
            if finished(run, recipe):
                return 0
            if launcher.stopping or code == EXIT_STOPPED:
                say("asked to stop")
                return EXIT_STOPPED
        else:
            code = None
            say(f"no start: {len(there)} of {len(hosts)} hosts answer, and no number of their ranks fits the recipe")
        step = last_step(run)
        try:
            wait = restarts.failed_at(step)
        except GiveUpError as error:
            return give_up(str(error))
        say(f"failed with code {code} after step {step}; starting again in {wait:g} s")
        launcher.sleep(wait)
        if launcher.stopping:
            return EXIT_STOPPED
    return 1


class Launcher:
    """Runs deepspeed and passes on that this process was asked to stop."""

    def __init__(self) -> None:
        self.stopping = False
        self._process: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._stop)

    def run(self, ranks: Mapping[str, int], by_ssh: bool, port: int, exports: list[str], passed_on: list[str]) -> int:
        """One start to its end; its exit code. (0 says little: deepspeed returns it for a pdsh that was killed.)"""
        with tempfile.TemporaryDirectory() as folder:
            command = [str(Path(sys.executable).with_name("deepspeed")), "--master_port", str(port)]
            environment = dict(os.environ)
            if by_ssh:
                hostfile, variables = Path(folder) / "hosts", Path(folder) / "environment"
                hostfile.write_text("".join(f"{host} slots={count}\n" for host, count in ranks.items()))
                # by the hosts' names, a rank that never came can be named
                variables.write_text("\n".join([f"SPHERESCALE_HOSTS={','.join(ranks)}", *exports]) + "\n")
                command += ["--hostfile", str(hostfile), "--master_addr", next(iter(ranks))]
                command += ["--force_multi", "--no_ssh_check"]  # one host that is left may be another than this
                environment["DS_ENV_FILE"] = str(variables)
                environment[SSH_ARGUMENTS] = f"{KEEP_ALIVE} {environment.get(SSH_ARGUMENTS, '')}"
            else:
                command += ["--num_gpus", str(ranks["localhost"])]
                environment |= dict(export.split("=", 1) for export in exports)
            self._process = subprocess.Popen([*command, str(TRAIN), *passed_on], env=environment)
            code = self._process.wait()
            self._process = None
            return code

    def sleep(self, seconds: float) -> None:
        """Wait, but not for longer than until asked to stop."""
        until = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < until:
            time.sleep(0.1)

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.stopping = True
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)


def recipe_and_run(passed_on: list[str]) -> tuple[Recipe, Path]:
    """The recipe and the run's folder that train.py will use."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--run", type=Path)
    known, _ = parser.parse_known_args(passed_on)
    return load_recipe(known.recipe, known.set), known.run or Path("runs") / known.recipe.stem


def finished(run: Path, recipe: Recipe) -> bool:
    """Whether the checkpoint of the last step is there."""
    return max(complete_steps(run), default=-1) >= recipe.optimizer.steps


def last_step(run: Path) -> int:
    """The last step that the run told of; 0 before the first."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError):
            continue  # torn by a kill
    return 0


def say(text: str) -> None:
    """One line for whoever watches."""
    print(f"supervise.py: {text}", file=sys.stderr, flush=True)


def give_up(reason: str) -> int:
    """Say why, and the exit code."""
    say(f"given up: {reason}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
