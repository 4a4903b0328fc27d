"""The command that checks hosts before a run: ``python -m cluster.preflight``.

  python -m cluster.preflight --hostfile hosts --run /shared/runs/casia20 --shards /shared/shards

Each host is checked by ssh (without a password, as deepspeed needs it): it answers, and has this project at the same
path, with the same versions and the same code; clocks, GPUs, drivers and shards are the same on all hosts; the run's
folder is one shared folder, with room; the port is free. Then the ranks are started with deepspeed, as for training,
and the collectives of a step are timed. With a plan, they have the run's own sizes:

  python stages/plan.py --identities 2059906 --ranks 16 --backbone iresnet100 --global-batch 2048 --json > plan.json
  python -m cluster.preflight --hostfile hosts --plan plan.json --min-gb-per-second 10

Variables that NCCL needs on your network go into the file that deepspeed reads: cluster/launch/deepspeed_env.example.

Exit code: 0 if every check passed, 1 if one failed (the last line names the host and what to do), 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cluster.begin  # noqa: F401 - Ctrl-C is one line
from cluster.preflight import checks, probe
from cluster.preflight.checks import GIB, Check, Planned
from cluster.preflight.facts import Facts
from cluster.stop import exit_with
from cluster.supervision.hosts import read_hostfile

# Without a plan: a backbone of 24 million parameters, and 128 embeddings of 512.
GRADIENT_BYTES, EMBEDDING_BYTES = 4 * 24_000_000, 4 * 128 * 512
# At once, as a recipe has it by default: of step 0, the newest three, and the one that is written.
CHECKPOINTS = 5


def parse() -> argparse.Namespace:
    """The command line: the hosts, what the run will use, and the limits."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.preflight", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hostfile", type=Path, required=True, help="lines of 'host slots=N', as deepspeed reads them")
    parser.add_argument("--run", type=Path, help="the run's folder, which all hosts must share")
    parser.add_argument("--shards", type=Path, help="the folder of shards that all hosts must have")
    parser.add_argument("--plan", type=Path, help="the output of `stages/plan.py --json` for this run")
    parser.add_argument("--master-port", type=int, default=29500, help="port where the ranks meet (29500)")
    parser.add_argument(
        "--min-gb-per-second",
        type=float,
        default=0,
        help="least rate at which a rank sends in the largest collective (0)",
    )
    parser.add_argument("--free-gib", type=float, default=10, help="least room for the run, if no plan needs more (10)")
    parser.add_argument("--clock-seconds", type=float, default=1, help="the most that clocks may differ (1)")
    parser.add_argument("--probe-seconds", type=float, default=30, help="time limit for a host to answer (30)")
    parser.add_argument("--no-exchange", action="store_true", help="start no ranks: the GPUs are in use")
    parser.add_argument(
        "--exchange-seconds", type=float, default=180, help="time limit for the ranks' measurement (180)"
    )
    args = parser.parse_args()
    # From here, as in training: ssh begins in the home folder.
    args.run, args.shards = (folder and folder.absolute() for folder in (args.run, args.shards))
    return args


def main() -> int:
    """Check, printing each result as it comes; returns the exit code."""
    args = parse()
    try:
        hosts = probe.Hosts(read_hostfile(args.hostfile), args.probe_seconds)
        plan = read_plan(args.plan, sum(hosts.slots.values())) if args.plan else None
    except (OSError, ValueError) as error:
        print(f"preflight: {error}", file=sys.stderr)
        return 2
    failed: list[Check] = []
    for check in look(hosts, args, plan):
        show(check)
        if check.faults:
            failed.append(check)
    if failed:
        worst = failed[0]
        print(f"preflight: {worst.name}: {worst.faults[0]}: {worst.advice}", file=sys.stderr)
    return 1 if failed else 0


def look(hosts: probe.Hosts, args: argparse.Namespace, plan: Planned | None) -> Iterator[Check]:
    """One check after the other, the gravest first; ends early if the others would make no sense."""
    answering = hosts.ask("true")
    silence = f"got no answer within {hosts.patience_seconds:g} s, wanted one by ssh"
    absent = tuple(f"{host}: {silence}" for host in hosts.slots if host not in answering)
    yield Check("ssh", f"{len(answering)} hosts answer", absent, "is it up, and does `ssh HOST true` ask for nothing?")
    if not answering:
        return
    slots = {host: hosts.slots[host] for host in hosts.slots if host in answering}
    reached = probe.Hosts(slots, hosts.patience_seconds)
    facts, without = probe.facts(reached, args.shards, args.run, args.master_port)
    cannot = tuple(f"{host}: got {printed!r}, wanted the project's facts" for host, printed in without.items())
    yield Check(
        "project", "runs on every host", cannot, f"have the project and {sys.executable} at the same path there"
    )
    if facts:
        yield from alike(reached, facts, args, plan)
    if not (absent or cannot or args.no_exchange):
        yield bandwidth(hosts, args, plan)


def alike(
    hosts: probe.Hosts, facts: dict[str, Facts], args: argparse.Namespace, plan: Planned | None
) -> Iterator[Check]:
    """The hosts' facts, compared."""
    yield checks.versions(facts)
    yield checks.clocks(*probe.clocks(hosts), args.clock_seconds)
    yield checks.gpus(facts, hosts.slots)
    if args.shards:
        yield checks.shards(facts)
    if args.run:
        with probe.token_in(hosts, args.run) as (token, read):
            yield checks.shared(token, read, str(args.run))
        planned = CHECKPOINTS * plan.checkpoint_bytes if plan else 0
        yield checks.disk(facts, max(planned, args.free_gib * GIB))
    yield checks.port(facts, args.master_port)


def bandwidth(hosts: probe.Hosts, args: argparse.Namespace, plan: Planned | None) -> Check:
    """The collectives of a step, timed over all ranks."""
    gradient, embeddings = GRADIENT_BYTES, EMBEDDING_BYTES
    if plan:
        gradient, embeddings = plan.gradient_bytes, plan.embedding_bytes
    try:
        measured, links = probe.exchange(
            hosts, args.hostfile, args.master_port, gradient, embeddings, args.exchange_seconds
        )
    except probe.ProbeError as error:
        return Check("bandwidth", "", (str(error),), "see docs/many_nodes.md: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME")
    return checks.bandwidth(measured, links, 1e9 * args.min_gb_per_second)


def read_plan(path: Path, ranks: int) -> Planned:
    """What a plan wants of the hosts.

    Raises:
        ValueError: if the file is no plan, or one for another number of ranks.
    """
    try:
        plan = Planned(**json.loads(path.read_text())["hosts"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: got {error!r}, wanted the output of stages/plan.py --json") from None
    if plan.ranks != ranks:
        raise ValueError(f"{path}: got a plan for {plan.ranks} ranks, wanted the {ranks} slots of the hostfile")
    return plan


def show(check: Check) -> None:
    """Print a line of the table, and one for each fault."""
    print(f"{check.name:<12}{'FAILED' if check.faults else 'ok':<8}{'' if check.faults else check.found}".rstrip())
    for fault in check.faults:
        print(f"{'':<12}{fault}")
    sys.stdout.flush()


if __name__ == "__main__":
    exit_with(main)
