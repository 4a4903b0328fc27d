"""Work spread over forked processes: a shared counter gives the next job, a pipe returns each result.

`concurrent.futures` would pickle the plan for every job and leave orphans if the parent is killed. Here the plan
of 42 million samples (a gigabyte) is inherited as shared pages, and a worker whose parent is gone ends.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

from pipeline.shards.format.manifest import ShardError

Result = TypeVar("Result")


def each_done(work: Callable[[int], Result], jobs: Sequence[int], workers: int) -> Iterator[Result]:
    """Call `work(job)` for each job once, and yield the results as they finish.

    With one worker (or one job) all runs in this process. An exception of `work` is raised here, and the other
    workers are ended; closing the iterator ends them too.

    Raises:
        ShardError: a worker died without an exception, as one that the kernel kills for its memory.
    """
    if min(workers, len(jobs)) <= 1:
        yield from map(work, jobs)
        return
    context = multiprocessing.get_context("fork")
    counter = context.Value("q", 0)
    team: dict[Connection, BaseProcess] = {}
    try:
        # Ctrl-C reaches the whole process group. It is blocked until each worker ignores it; the parent handles it.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(min(workers, len(jobs))):
                receive, send = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(target=_work, args=(work, jobs, counter, send), daemon=True)
                process.start()
                # The worker alone holds the sending end now, so its death is an end of file here.
                send.close()
                team[receive] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        yield from _results(team)
    finally:
        for process in team.values():
            process.terminate()
            process.join()


def _results(team: "dict[Connection, BaseProcess]") -> Iterator[Any]:
    """Results of all workers until each has ended."""
    running = list(team)
    while running:
        ready = wait(running)
        for pipe in [pipe for pipe in running if pipe in ready]:
            try:
                result, error = pipe.recv()
            except EOFError:
                running.remove(pipe)
                team[pipe].join()
                if code := team[pipe].exitcode:
                    raise ShardError(f"a worker died: got exit code {code}, wanted 0; run it again") from None
                continue
            if error:
                raise error
            yield result


def _work(work: Callable[[int], Any], jobs: Sequence[int], counter: "Synchronized[int]", results: Connection) -> None:
    """One worker: take the next number until none is left or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The parent ends a worker so; the stack must unwind, so that no file is left half-written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parent = os.getppid()
    try:
        while os.getppid() == parent:
            with counter.get_lock():
                place = counter.value
                counter.value += 1
            if place >= len(jobs):
                return
            results.send((work(jobs[place]), None))
    except Exception as error:  # whatever it was, the parent raises it
        results.send((None, error))
