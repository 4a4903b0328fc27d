#!/usr/bin/env python
"""Train, and start again on the hosts that answer when a host or a rank is lost.

  python stages/supervise.py --hostfile hosts -- --recipe stages/recipes/casia_sphereface20.yaml --run runs/casia20
  python stages/supervise.py --ranks 8 -- --recipe ... --run ...        (this machine alone)

The arguments after `--` go to stages/train.py. Before each start every host of the hostfile is probed: one that does
not answer is left out, one that is back takes part again. The number of ranks is the largest that the recipe's global
batch can be split over; if too few answer for any, it waits for them. Training resumes from the newest whole
checkpoint: bit for bit the same run on as many ranks and threads as before; on others each step is the same to rounding
(docs/resume.md).

Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP are passed on to the ranks of every host: they finish the step, save and end. A
second signal ends everything at once.

Exit codes: 0 trained to the end; 75 asked to stop, saved; 65 refused, which is not tried again; 74 nothing can be
written here; 1 given up after too many failures. The reason is the last line or, if train.py refused, those above it.
"""

from __future__ import annotations

try:
    import cluster.begin  # noqa: F401 - before all that takes long to import
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: {missing}: make install, then source .venv/bin/activate") from None

import argparse
import itertools
from pathlib import Path

from cluster.stop import EXIT_REFUSED, EXIT_STOPPED, EXIT_UNSAVED, code_of, exit_with, one_line, tell
from cluster.supervision.hosts import HERE, assign, read_hostfile, variables_of_hosts
from cluster.supervision.launcher import Launcher
from cluster.supervision.restarts import GiveUpError, Restarts
from pipeline.recipe.schema import RecipeError
from pipeline.run.checkpoint import has_reached
from pipeline.run.folder import RunFolder
from pipeline.run.metrics_log import last_step
from pipeline.shards.format.manifest import ShardError
from pipeline.training.start import Start, read_start

TRAIN = Path(__file__).with_name("train.py")

# What train.py imports, and what it imports later: an agent on every host keeps them ready for the next start.
IMPORTS = (
    "cluster.ranks.process_group",
    "cluster.ranks.watchdog",
    "pipeline.recipe.file",
    "pipeline.run.history",
    "pipeline.run.record",
    "pipeline.run.set_aside",
    "pipeline.training.start",
    "pipeline.training.evaluator",
    "pipeline.training.loop",
    "pipeline.training.observed",
    "pipeline.training.observers",
)
COMPILER = "torch._dynamo"  # takes seconds; only if the network is compiled

# What train.py exits with for arguments that no restart would mend: refused, or unknown to argparse.
FINAL = (EXIT_REFUSED, 2)


def parse() -> argparse.Namespace:
    """The command line: where to run, how often to start again, and the arguments of train.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--hostfile", type=Path, help="lines of 'host slots=N', as deepspeed reads them")
    where.add_argument("--ranks", type=int, help="ranks on this machine, without ssh")
    parser.add_argument(
        "--min-ranks", type=int, default=1, help="wait for hosts rather than start with fewer (default 1)"
    )
    parser.add_argument(
        "--master-port", type=int, default=29500, help="of the first start; each takes the next (default 29500)"
    )
    parser.add_argument(
        "--probe-seconds", type=float, default=15, help="a host that is silent for longer is left out (default 15)"
    )
    parser.add_argument("--max-restarts", type=int, default=50, help="give up after as many (default 50)")
    parser.add_argument(
        "--same-step", type=int, default=3, help="give up after as many failures in a row at one step (default 3)"
    )
    parser.add_argument(
        "--end-seconds",
        type=float,
        default=2,
        help="ranks that go on for longer after one has failed are killed (default 2)",
    )
    parser.add_argument(
        "--wait-seconds", type=float, default=1, help="before the first restart; doubles without progress (default 1)"
    )
    parser.add_argument(
        "--export", action="append", default=[], metavar="NAME=VALUE", help="set on every host; repeatable"
    )
    parser.add_argument("train", nargs=argparse.REMAINDER, help="-- and the arguments of train.py")
    args = parser.parse_args()
    for option, number in (("ranks", args.ranks), ("min-ranks", args.min_ranks)):
        if number is not None and number < 1:
            parser.error(f"--{option}: got {number}, wanted at least 1")
    for export in args.export:
        if not export.partition("=")[0].isidentifier() or "=" not in export:
            parser.error(f"--export: got {export!r}, wanted NAME=VALUE")
    if not set(args.train) - {"--"}:
        parser.error(
            "got no arguments of train.py, wanted them after --, such as: --ranks 2 -- --recipe FILE --run RUN"
        )
    return args


def main() -> int:
    """Check what can be checked here, then supervise; returns the exit code."""
    args = parse()
    passed_on = [argument for argument in args.train if argument != "--"]
    try:
        start = start_of(passed_on)
        hosts = read_hostfile(args.hostfile) if args.hostfile else {HERE: args.ranks}
        check_ranks(start, sum(hosts.values()), args.min_ranks)
        exports = [*(variables_of_hosts() if args.hostfile else ()), *args.export]
        imports = [*IMPORTS, COMPILER] if start.recipe.backbone.compile else IMPORTS
        with Launcher(TRAIN, passed_on, imports, exports, hosts, args.probe_seconds, args.end_seconds, say) as launcher:
            return supervise(launcher, hosts, start, args)
    except GiveUpError as error:
        say(f"given up: {error}")
        return 1
    except (RecipeError, ShardError, ValueError, OSError) as error:
        say(f"given up: {one_line(error)}")
        return code_of(error)


def supervise(launcher: Launcher, hosts: dict[str, int], start: Start, args: argparse.Namespace) -> int:
    """Start, watch, and start again, to the end or until asked to stop; returns the exit code.

    Raises:
        GiveUpError: when it has failed too often.
    """
    restarts = Restarts(args.max_restarts, args.same_step, args.wait_seconds)
    for attempt in itertools.count():
        ranks = ranks_of(launcher, hosts, start, args.min_ranks)
        if ranks:
            places = ", ".join(f"{host} ({count})" for host, count in ranks.items())
            say(f"start {attempt + 1} on {places}")
            if why := why_not(start, sum(hosts.values())):
                say(f"{sum(ranks.values())} of {sum(hosts.values())} ranks take part: {why}")
        code = run_once(launcher, ranks, args.master_port + attempt) if ranks else None
        # If a set cannot be judged, a run that has ended well is not evaluated, and starting again would not help.
        trained = has_reached(start.run, start.recipe.optimizer.steps)
        if (code == 0 and trained) or start.is_finished:
            return 0
        if launcher.stopping or code == EXIT_STOPPED:
            break
        if code in FINAL:
            say("given up: refused, for the reason above; starting again would end the same way")
            return EXIT_REFUSED
        step = last_step(RunFolder(start.run).metrics)
        wait = restarts.in_vain() if code in (None, EXIT_UNSAVED) else restarts.failed_at(step)
        ended = f"failed with code {code} after step {step}; starting" if ranks else "waiting for hosts; trying"
        say(f"{ended} again in {wait:g} s")
        launcher.sleep(wait)
    say("asked to stop")
    return EXIT_STOPPED


def run_once(launcher: Launcher, ranks: dict[str, int], port: int) -> int | None:
    """The exit code of a start; `EXIT_UNSAVED` also if this machine's own disk is full. None: already asked to stop."""
    try:
        return launcher.run(ranks, port)
    except OSError as error:
        if code_of(error) != EXIT_UNSAVED:
            raise
        say(one_line(error))
        return EXIT_UNSAVED


def check_ranks(start: Start, slots: int, min_ranks: int) -> None:
    """Refuse now what would not start on all of the hosts either.

    Raises:
        RecipeError: if the recipe goes with no number of ranks from `min_ranks` to `slots`: the reason of the lowest.
        ValueError: if there are fewer slots than that.
    """
    if min_ranks > slots:
        raise ValueError(f"--min-ranks: got {min_ranks}, wanted at most {slots}: there are no more ranks")
    if all(why_not(start, ranks) for ranks in range(slots, min_ranks, -1)):
        start.check_ranks(min_ranks)


def why_not(start: Start, ranks: int) -> str:
    """Why the recipe cannot be split over so many ranks; empty if it can."""
    try:
        start.check_ranks(ranks)
    except RecipeError as error:
        return str(error)
    return ""


def ranks_of(launcher: Launcher, hosts: dict[str, int], start: Start, min_ranks: int) -> dict[str, int]:
    """Ranks for each host that answers: the most that the recipe can be split over; empty if none fits yet."""

    def fits(ranks: int) -> bool:
        try:
            start.check_ranks(ranks)
        except RecipeError:
            return False
        return ranks >= min_ranks

    there = launcher.answering()
    for host in hosts.keys() - there:
        said = launcher.why_absent(host)
        say(f"{host} does not answer: left out{f' ({said})' if said else ''}")
    ranks = assign({host: slots for host, slots in hosts.items() if host in there}, fits)
    if not ranks:
        say(f"no start: {len(there)} of {len(hosts)} hosts answer, and no number of their ranks fits the recipe")
    return ranks


def start_of(passed_on: list[str]) -> Start:
    """What these arguments of train.py name, read here as well: faults show before any host is probed.

    Raises:
        RecipeError, ShardError: what train.py would raise.
    """
    parser = argparse.ArgumentParser(prog="supervise.py ... --", add_help=False)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--run", "--run-folder", type=Path)
    parser.add_argument("--from-step", type=int)
    known, _ = parser.parse_known_args(passed_on)
    return read_start(known.recipe, known.set, known.run, known.from_step)


def say(text: str) -> None:
    """Print one line for the user."""
    tell(f"supervise.py: {text}")


if __name__ == "__main__":
    exit_with(main)
