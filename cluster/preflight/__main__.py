"""Are these hosts fit to train on? Looked at before a run is started, which would find out the hard way.

  python -m cluster.preflight --hostfile hosts --run /shared/runs/casia20 --shards /shared/shards

Each host is asked by ssh (without a password, as deepspeed needs it): does it answer, run this project from the same
path, with the same versions and the same code; are clocks, GPUs, drivers and shards alike; is the run's folder one
folder on all of them, with room; is the port free. Then the ranks are started with deepspeed, as for training, and
time what a step exchanges. With a plan, its sizes are the run's own:

  python stages/plan.py --identities 2059906 --ranks 16 --backbone iresnet100 --global-batch 2048 --json > plan.json
  python -m cluster.preflight --hostfile hosts --plan plan.json --min-gb-per-second 10

What ssh and NCCL need on your network goes where deepspeed finds it: cluster/launch/deepspeed_env.example.

Exit code: 0 when all is well, 1 when something is wrong (the last line says where and what to do), 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.hosts import read_hostfile
from cluster.preflight import checks, probe
from cluster.preflight.checks import GIB, Check, Planned
from cluster.preflight.facts import Facts
from cluster.stop import exit_with

# Without a plan: a backbone of 24 million parameters, and 128 embeddings of 512.
GRADIENT_BYTES, EMBEDDING_BYTES = 4 * 24_000_000, 4 * 128 * 512
CHECKPOINTS_KEPT = 3


def parse() -> argparse.Namespace:
    """The command line: which hosts, what the run will use, and what is good enough."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.preflight", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hostfile", type=Path, required=True, help="lines of 'host slots=N', as deepspeed reads them")
    parser.add_argument("--run", type=Path, help="the run's folder, which all hosts must share")
    parser.add_argument("--shards", type=Path, help="the set that all hosts must have")
    parser.add_argument("--plan", type=Path, help="what `stages/plan.py --json` printed for this run")
    parser.add_argument("--master-port", type=int, default=29500, help="where the ranks meet (29500)")
    parser.add_argument(
        "--min-gb-per-second", type=float, default=0, help="wanted of the largest collective, sent by a rank (0)"
    )
    parser.add_argument("--free-gib", type=float, default=10, help="wanted where the run is, if no plan says more (10)")
    parser.add_argument("--clock-seconds", type=float, default=1, help="the most that clocks may differ (1)")
    parser.add_argument("--probe-seconds", type=float, default=30, help="for a host to answer (30)")
    parser.add_argument("--no-exchange", action="store_true", help="start no ranks: their GPUs are at work")
    parser.add_argument("--exchange-seconds", type=float, default=180, help="for the ranks to measure (180)")
    return parser.parse_args()


def main() -> int:
    """Check, showing each result as it comes; returns the exit code."""
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
    """One check after the other, the gravest first; ends where the rest would make no sense."""
    there = hosts.ask("true")
    silence = f"got no answer within {hosts.patience_seconds:g} s, wanted one by ssh"
    absent = tuple(f"{host}: {silence}" for host in hosts.slots if host not in there)
    yield Check("ssh", f"{len(there)} hosts answer", absent, "is it up, and does `ssh HOST true` ask for nothing?")
    if not there:
        return
    reached = probe.Hosts({host: hosts.slots[host] for host in hosts.slots if host in there}, hosts.patience_seconds)
    facts, dumb = probe.facts(reached, args.shards, args.run, args.master_port)
    cannot = tuple(f"{host}: got {said!r}, wanted the project's facts" for host, said in dumb.items())
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
    """What the hosts told of themselves, compared."""
    yield checks.versions(facts)
    yield checks.clocks(*probe.clocks(hosts), args.clock_seconds)
    yield checks.gpus(facts, hosts.slots)
    if args.shards:
        yield checks.shards(facts)
    if args.run:
        with probe.token_in(hosts, args.run) as (token, read):
            yield checks.shared(token, read, str(args.run))
        planned = CHECKPOINTS_KEPT * plan.checkpoint_bytes if plan else 0
        yield checks.disk(facts, max(planned, args.free_gib * GIB))
    yield checks.port(facts, args.master_port)


def bandwidth(hosts: probe.Hosts, args: argparse.Namespace, plan: Planned | None) -> Check:
    """What a step exchanges, timed over all ranks."""
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
    """What a plan says about the hosts.

    Raises:
        ValueError: when the file is no plan, or one for another number of ranks.
    """
    try:
        plan = Planned(**json.loads(path.read_text())["hosts"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: got {error!r}, wanted what stages/plan.py --json prints") from None
    if plan.ranks != ranks:
        raise ValueError(f"{path}: got a plan for {plan.ranks} ranks, wanted the {ranks} slots of the hostfile")
    return plan


def show(check: Check) -> None:
    """A line of the table, and one for each fault."""
    print(f"{check.name:<12}{'FAILED' if check.faults else 'ok':<8}{'' if check.faults else check.found}".rstrip())
    for fault in check.faults:
        print(f"{'':<12}{fault}")
    sys.stdout.flush()


if __name__ == "__main__":
    exit_with(main)
