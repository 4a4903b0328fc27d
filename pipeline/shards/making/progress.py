"""How far the making of a set is: a bar and, if they are wanted, metrics for Prometheus."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from cluster.progress import progress_bar
from pipeline.shards.making.one_tar import Written

if TYPE_CHECKING:
    from cluster.telemetry import Telemetry


class Endpoint(NamedTuple):
    """Where metrics are served, and of what: `job` names the set, `rank` the part."""

    port: int
    address: str
    job: str
    rank: int


@contextmanager
def progress_of(samples: int, endpoint: Endpoint | None) -> Iterator[Callable[[Written], None]]:
    """Yield a function to call for each tar: it updates the bar and, with an endpoint, the metrics.

    Args:
        samples: in all tars.
        endpoint: where metrics are served; None: nowhere.
    """
    with progress_bar(samples) as advance, ExitStack() as stack:
        telemetry: Telemetry | None = None

        def progress(written: Written) -> None:
            nonlocal telemetry
            advance(written.samples)
            if endpoint is None:
                return
            # Only after the workers are forked: they would pay for its imports, and its thread would not follow them.
            first = telemetry is None
            telemetry = telemetry or stack.enter_context(_telemetry(samples, endpoint))
            telemetry.add("sharded_samples_total", written.samples)
            telemetry.add("sharded_bytes_total", written.bytes)
            telemetry.add("set_aside_samples_total", written.set_aside)
            if first:  # after everything is set: the first scrape may come at once
                telemetry.serve(endpoint.port, endpoint.address)

        yield progress


def _telemetry(samples: int, endpoint: Endpoint) -> Telemetry:
    from cluster.metrics import SHARDING_METRICS  # noqa: PLC0415 - after the workers are forked
    from cluster.telemetry import Telemetry  # noqa: PLC0415

    telemetry = Telemetry(rank=endpoint.rank, host=socket.gethostname(), job=endpoint.job, metrics=SHARDING_METRICS)
    telemetry.set("samples_to_shard", samples)
    return telemetry
