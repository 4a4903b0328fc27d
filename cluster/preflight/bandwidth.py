"""Times the collectives of a training step: run on all hosts by `deepspeed --module`.

Rank 0 prints one line, `RESULT` and JSON: each collective's duration, and the rate from each host to the next.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from itertools import accumulate

import torch
import torch.distributed as dist

from cluster.preflight.checks import Measured
from cluster.ranks.collective_rates import fastest
from cluster.ranks.process_group import device_of, process_group
from cluster.ranks.topology import Topology

RESULT = "PREFLIGHT_RESULT "
_LINK_BYTES = 2**24


def collectives(gradient_bytes: int, embedding_bytes: int, topology: Topology, device: torch.device) -> list[Measured]:
    """An all-reduce of the network's gradient and an all-gather of each rank's embeddings; all ranks take part."""
    others, ranks = topology.num_ranks - 1, topology.num_ranks
    gradient = torch.zeros(max(1, gradient_bytes // 4), device=device)
    piece = torch.zeros(max(1, embedding_bytes // 4), device=device)
    pieces = [torch.empty_like(piece) for _ in range(ranks)]
    return [
        Measured(
            "all-reduce of the network's gradient",
            2 * others * gradient.nbytes // ranks,
            fastest(lambda: dist.all_reduce(gradient), device),
        ),
        Measured(
            "all-gather of embeddings", others * piece.nbytes, fastest(lambda: dist.all_gather(pieces, piece), device)
        ),
    ]


def links(slots: dict[str, int], topology: Topology, device: torch.device) -> dict[str, float]:
    """Bytes a second from the first rank of each host to that of the next, one pair after the other.

    All ranks take part, and all get the same result. `slots` are the ranks of each host, in order.
    """
    hosts = list(slots)
    first_ranks = [0, *accumulate(slots.values())]
    data = torch.zeros(_LINK_BYTES // 4, device=device)
    rates = {}
    for place in range(len(hosts) if len(hosts) > 1 else 0):
        following = (place + 1) % len(hosts)

        def pass_on(source: int = first_ranks[place], target: int = first_ranks[following]) -> None:
            if topology.rank == source:
                dist.send(data, target)
            elif topology.rank == target:
                dist.recv(data, source)

        # a send returns as soon as its data is in a buffer: the receiver's time is the link's
        seconds = torch.tensor([fastest(pass_on, device)], device=device)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        rates[f"{hosts[place]} → {hosts[following]}"] = data.nbytes / float(seconds)
    return rates


def ranks_of_hosts(text: str) -> dict[str, int]:
    """``a=8,b=4`` as numbers by host."""
    ranks = {}
    for part in text.split(","):
        host, _, count = part.rpartition("=")
        ranks[host] = int(count)
    return ranks


def main() -> None:
    """Meet the other ranks and measure; rank 0 prints the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gradient-bytes", type=int, required=True)
    parser.add_argument("--embedding-bytes", type=int, required=True)
    parser.add_argument("--slots", type=ranks_of_hosts, required=True, metavar="HOST=N,…", help="ranks of each")
    parser.add_argument("--timeout-seconds", type=float, required=True)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    topology = Topology.from_environment(os.environ)
    device = device_of(topology)
    with process_group(topology, device, args.timeout_seconds, {}):
        measured = collectives(args.gradient_bytes, args.embedding_bytes, topology, device)
        rates = links(args.slots, topology, device)
    if topology.rank == 0:
        print(RESULT + json.dumps({"collectives": list(map(asdict, measured)), "links": rates}), flush=True)


if __name__ == "__main__":
    main()
