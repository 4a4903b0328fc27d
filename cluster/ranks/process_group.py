"""The process group of a run: created once from the topology, bounded in time, destroyed at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from cluster.ranks.black_box import record_collectives
from cluster.ranks.rendezvous import StartError, meet
from cluster.ranks.topology import Topology

logger = logging.getLogger(__name__)


def device_of(topology: Topology) -> torch.device:
    """The GPU of this rank if the host has GPUs, else the CPU.

    Raises:
        StartError: on every rank of a host that has GPUs, but fewer than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if topology.ranks_of_node > torch.cuda.device_count():
        raise StartError(
            f"{socket.gethostname()}: got {topology.ranks_of_node} ranks on this host, wanted at most one for each of "
            f"the {torch.cuda.device_count()} GPUs that a rank sees"
        )
    return torch.device("cuda", topology.rank_of_node)


@dataclass(frozen=True)
class Together:
    """All ranks of a run: their group, and the store that they share."""

    group: dist.ProcessGroup
    store: dist.Store


@contextmanager
def process_group(
    topology: Topology, device: torch.device, timeout_seconds: float, facts: Mapping[str, str]
) -> Iterator[Together]:
    """All ranks as one group: NCCL between GPUs, gloo between CPUs. The group is destroyed on leaving the context.

    `timeout_seconds` bounds the rendezvous and every collective: a rank that never joins ends the others. `facts` are
    what must be the same on every rank.

    Raises:
        StartError: on every rank, if one does not join or has other facts; see `cluster.ranks.rendezvous`.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    record_collectives()
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    store = dist.HashStore() if topology.num_ranks == 1 else _meet(topology, timeout_seconds, facts)
    try:
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=topology.rank,
            world_size=topology.num_ranks,
            timeout=timeout,
        )
    except RuntimeError as error:
        host = socket.gethostname()
        raise StartError(f"rank {topology.rank} on {host}: {backend}: no connection to the others: {error}") from None
    try:
        group = dist.group.WORLD
        assert group is not None
        yield Together(group, store)
    finally:
        dist.destroy_process_group()


def refuse(topology: Topology, reason: str, timeout_seconds: float = 60) -> None:
    """Pass on to the other ranks, if any, why this one does not start: they would wait for it."""
    if topology.num_ranks > 1:
        with contextlib.suppress(StartError):  # this rank prints its own reason
            _meet(topology, timeout_seconds, {}, reason)


def _meet(topology: Topology, timeout_seconds: float, facts: Mapping[str, str], refusal: str = "") -> dist.Store:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            wanted = "an address of rank 0's host" if name == "MASTER_ADDR" else "a free port of rank 0's host"
            raise StartError(f"{name}: not set, with {topology.num_ranks} ranks; wanted {wanted}, on every rank")
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return meet(topology, address, port, timeout_seconds, facts, refusal)


def background_group() -> dist.ProcessGroup:
    """A second group of all ranks, between CPUs, for a background thread's own exchanges. A collective.

    Its time-out is a day, as long as the slowest disk: the other groups and the watchdog detect a lost rank. So do they
    here: a rank that never comes exhausts the time-out of the group of all.
    """
    dist.barrier()
    return dist.new_group(backend="gloo", timeout=timedelta(days=1))


def grid(
    num_ranks: int, width: int, timeout_seconds: float
) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """This rank's row and column of the ranks laid out in rows of `width`: a row shares, a column replicates.

    Row k holds ranks [k·width, (k+1)·width); a column holds the ranks at one place of every row. With a single row the
    row is the whole world and the column None. A collective of all ranks. `timeout_seconds` bounds those of rows and
    columns: torch would not take it over from the group of all.

    Raises:
        ValueError: if `width` does not divide the ranks.
    """
    if num_ranks % width:
        raise ValueError(f"width: got {width}, wanted a divisor of {num_ranks} ranks")
    if width == num_ranks:
        return dist.group.WORLD, None
    rank = dist.get_rank()
    # every rank must take part in creating every group
    make = partial(dist.new_group, timeout=timedelta(seconds=timeout_seconds))
    rows = [make(list(range(k, k + width))) for k in range(0, num_ranks, width)]
    columns = [make(list(range(place, num_ranks, width))) for place in range(width)]
    return rows[rank // width], columns[rank % width]
