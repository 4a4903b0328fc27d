"""Starts the ranks of one host without a launcher: in a pod, or with any tool that runs one command on each host.

  python -m cluster.start_ranks --host 0 --hosts 2 --ranks 8 --master-addr node1 stages/train.py --recipe ...

`torchrun` and DeepSpeed's launcher kill the ranks on a signal, saved or not, and exit with 1 whatever the ranks' codes.
This command passes SIGTERM, SIGINT and SIGUSR1 on to every rank, waits until all ranks have ended by themselves, and
exits with the most severe code: 65 or 2 (refused) before any other failure, then 69 (lost), 75 (stopped, saved) and 0.
A rank killed by a signal counts as 128 plus the signal's number.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from cluster.ranks.topology import Topology
from cluster.stop import EXIT_LOST, EXIT_REFUSED, EXIT_STOPPED, SIGNALS, exit_with

_POLL_SECONDS = 0.1


def environment_of(rank_of_node: int, host: int, hosts: int, ranks: int, address: str, port: int) -> dict[str, str]:
    """The variables of one of the `ranks` of each of the `hosts`: what topology and rendezvous read."""
    topology = Topology(host * ranks + rank_of_node, hosts * ranks, rank_of_node, ranks)
    return {**topology.to_environment(), "MASTER_ADDR": address, "MASTER_PORT": str(port)}


def most_severe(codes: Sequence[int]) -> int:
    """The most severe of several exit codes, which are as subprocesses give them: negative if killed by a signal."""
    positive = [code if code >= 0 else 128 - code for code in codes]
    order = (0, EXIT_STOPPED, EXIT_LOST)  # then any failure, then what another start would not change
    refused = (2, EXIT_REFUSED)
    return max(positive, key=lambda code: order.index(code) if code in order else 4 if code in refused else 3)


def start(command: Sequence[str], environments: Sequence[dict[str, str]]) -> int:
    """Run the command once with each environment, to the end of all; returns the exit code. In the main thread only."""
    ranks: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    # Only noted, and passed on below: a rank whose start a signal interrupts must get it too.
    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)

    for stop in SIGNALS:
        signal.signal(stop, note)
    for one in environments:
        if received:
            break
        # in a session of its own: Ctrl-C reaches this process alone, which signals the ranks, once
        ranks.append(subprocess.Popen(command, env=os.environ | one, start_new_session=True))
    passed_on = 0
    while any(rank.poll() is None for rank in ranks):
        for number in received[passed_on:]:
            for rank in ranks:
                rank.send_signal(number)
            passed_on += 1
        time.sleep(_POLL_SECONDS)
    return most_severe([rank.returncode for rank in ranks] or [EXIT_STOPPED])


def main() -> int:
    """Parse, start, wait."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.start_ranks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", type=int, required=True, help="number of this host, from 0")
    parser.add_argument("--hosts", type=int, required=True, help="number of hosts")
    parser.add_argument("--ranks", type=int, required=True, help="ranks of each host: one a GPU")
    parser.add_argument("--master-addr", required=True, help="address of host 0, where the ranks meet")
    parser.add_argument("--master-port", type=int, default=29500, help="port there (29500)")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="a Python file and its arguments")
    args = parser.parse_args()
    if not 0 <= args.host < args.hosts:
        parser.error(f"--host: got {args.host}, wanted 0 <= host < {args.hosts} hosts")
    if args.ranks < 1 or not args.script:
        parser.error("wanted at least one rank, and a Python file to run")
    place = (args.host, args.hosts, args.ranks, args.master_addr, args.master_port)
    return start([sys.executable, *args.script], [environment_of(rank, *place) for rank in range(args.ranks)])


if __name__ == "__main__":
    exit_with(main)
