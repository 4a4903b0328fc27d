"""Starts the ranks of one host, where no launcher does: in a pod, or wherever one command runs on each host.

  python -m cluster.start_ranks --host 0 --hosts 2 --ranks 8 --master-addr node1 stages/train.py --recipe ...

`torchrun` and DeepSpeed's launcher end the ranks when they are told to stop, saved or not, and exit with 1 whatever a
rank exits with. This passes SIGTERM, SIGINT and SIGUSR1 on, once for each, waits until every rank has ended by itself,
and exits with the code that says most: 65 or 2 (refused) before any failure, that before 69 (lost), 75 (stopped, saved)
and 0. A rank that a signal killed counts as 128 and the signal.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from cluster.stop import EXIT_LOST, EXIT_REFUSED, EXIT_STOPPED, SIGNALS, exit_with


def environment_of(rank_of_node: int, host: int, hosts: int, ranks: int, address: str, port: int) -> dict[str, str]:
    """What `cluster.topology` and the rendezvous read, for one of the `ranks` of each of the `hosts`."""
    return {
        "RANK": str(host * ranks + rank_of_node),
        "WORLD_SIZE": str(hosts * ranks),
        "LOCAL_RANK": str(rank_of_node),
        "LOCAL_SIZE": str(ranks),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def telling(codes: Sequence[int]) -> int:
    """The exit code that says most of several, as subprocesses give them: negative where a signal killed one."""
    positive = [code if code >= 0 else 128 - code for code in codes]
    order = (0, EXIT_STOPPED, EXIT_LOST)  # then any failure, then what no new start will change
    refused = (2, EXIT_REFUSED)
    return max(positive, key=lambda code: order.index(code) if code in order else 4 if code in refused else 3)


def start(command: Sequence[str], environments: Sequence[dict[str, str]]) -> int:
    """Run the command once with each environment, to the end of all; returns the exit code. In the main thread only."""
    ranks: list[subprocess.Popen[bytes]] = []
    heard: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        heard.append(number)
        for rank in ranks:
            rank.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    for one in environments:
        if heard:
            break
        # in a session of its own: Ctrl-C reaches this process alone, which tells the ranks, once
        ranks.append(subprocess.Popen(command, env=os.environ | one, start_new_session=True))
    return telling([rank.wait() for rank in ranks] or [EXIT_STOPPED])


def main() -> int:
    """Parse, start, wait."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.start_ranks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", type=int, required=True, help="place of this host, from 0")
    parser.add_argument("--hosts", type=int, required=True, help="how many there are")
    parser.add_argument("--ranks", type=int, required=True, help="of each host: one a GPU")
    parser.add_argument("--master-addr", required=True, help="of host 0, where the ranks meet")
    parser.add_argument("--master-port", type=int, default=29500, help="there (29500)")
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
