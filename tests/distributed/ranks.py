"""Runs a function on several ranks in processes of this machine: file rendezvous, no ports, a hang is a failure."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

# A server that has imported torch once, from which ranks are forked: saves seconds a test.
CONTEXT = multiprocessing.get_context("forkserver")
# torch._dynamo: half of the time of a small run, since the first torch.optim.Optimizer imports it.
WARM = "tests.distributed.warm"  # what it cannot import it leaves to the ranks
CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed", "deepspeed", "nvidia.dali", WARM])

# Where there is a GPU, that server has touched CUDA, which a process forked from it then cannot use.
FRESH = multiprocessing.get_context("spawn")

TIMEOUT_SECONDS = 300  # of a busy machine


def run_ranks(function: Callable[..., Any], num_ranks: int, *args: Any) -> list[Any]:
    """``function(rank, num_ranks, *args)`` on every rank inside a gloo group; their results in rank order.

    Raises AssertionError with every failed rank's traceback, or when a rank does not answer in time.
    """
    context = FRESH if torch.cuda.is_available() else CONTEXT
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(num_ranks):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_rank_main,
                args=(theirs, function, rank, num_ranks, f"{folder}/store", args),
                daemon=True,
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            answers = [_answer(pipe, rank) for rank, pipe in enumerate(pipes)]
        finally:
            for process in processes:
                process.join(timeout=10)
                process.kill()
    failed = [text for ok, text in answers if not ok]
    assert not failed, "\n".join(failed)
    return [pickle.loads(value) for _, value in answers]


def _answer(pipe: Connection, rank: int) -> tuple[bool, Any]:
    if not pipe.poll(TIMEOUT_SECONDS):
        return False, f"[rank {rank}] no answer in {TIMEOUT_SECONDS} s"
    try:
        return pipe.recv()
    except EOFError:
        return False, f"[rank {rank}] died without an answer"


def _rank_main(
    pipe: Connection,
    function: Callable[..., Any],
    rank: int,
    num_ranks: int,
    store: str,
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_RANK=str(rank))  # DeepSpeed reads these
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, num_ranks),
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    # A function without a collective could end, and close its connections, while another rank still opens its own.
    dist.barrier()
    try:
        answer: tuple[bool, bytes | str] = (True, pickle.dumps(function(rank, num_ranks, *args)))
    except BaseException:
        answer = (False, f"[rank {rank}]\n{traceback.format_exc()}")
    pipe.send(answer)
    pipe.close()
    dist.destroy_process_group()
