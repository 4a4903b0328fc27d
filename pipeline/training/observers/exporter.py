"""A rank's metrics for Prometheus: filled from every record, and served while training lasts."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from cluster.metrics import METRICS, evaluation_metrics
from cluster.pace import Pace
from cluster.ranks.topology import Topology
from cluster.telemetry import Telemetry, Tls
from pipeline.planning import head_bytes
from pipeline.planning.of_recipe import job_of
from pipeline.recipe.schema import Recipe, RecipeError
from pipeline.run.folder import RunFolder
from pipeline.run.saver import Saved
from pipeline.training.observers.observer import Observer
from pipeline.training.record import Record, Window, series_of

if TYPE_CHECKING:
    from pipeline.training.evaluator import Evaluated
    from pipeline.training.loop import Trainer


class Exporter(Observer):
    """Feeds a rank's records to its Prometheus metrics, and serves them if the recipe has a port.

    Args:
        telemetry: of this rank; closed at the end.
        recipe, run, topology: what runs where.
        num_classes: C.
        restarts: how often the run was started before.
        device: the type of its device, which decides what the head is planned to take.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        recipe: Recipe,
        run: Path,
        topology: Topology,
        num_classes: int,
        restarts: int = 0,
        device: str = "cpu",
    ) -> None:
        self._telemetry, self._recipe, self._run, self._topology = telemetry, recipe, run, topology
        self._pace = Pace()
        telemetry.set("ranks", topology.num_ranks)
        telemetry.set("planned_steps", recipe.optimizer.steps)
        telemetry.set("checkpoint_interval_steps", recipe.checkpoint.every)
        telemetry.set("head_planned_bytes", head_bytes(job_of(recipe, num_classes, topology.num_ranks, device)))
        telemetry.add("restarts_total", restarts)

    @override
    def started(self, step: int) -> None:
        """Serve the metrics, after all that is known is set: the first scrape is whole. Let Prometheus know where."""
        self._telemetry.set("step", step)
        log, rank_of_node = self._recipe.log, self._topology.rank_of_node
        if log.metrics_port is None:
            return
        port = log.metrics_port + rank_of_node if log.metrics_port else 0
        if self._telemetry.serve(port, log.metrics_address, endpoint_tls(self._recipe)) is not None:
            self._telemetry.announce(RunFolder(self._run).targets, self._topology.num_ranks)

    @override
    def recorded(self, record: Record, window: Window) -> None:
        """Set, add or observe every value of the step, as its row in the table says; microseconds."""
        t = self._telemetry
        for name, label, value in series_of(record.values):
            t.update(name, value, label)
        t.set("own_work_seconds", self._pace.add(time.monotonic(), record.own_seconds))

    @override
    def saved(self, saved: Saved) -> None:
        if saved.error is None:
            self._telemetry.checkpoint_saved(saved.seconds)
            self._telemetry.set("checkpoint_bytes", saved.bytes)
        else:
            self._telemetry.add("checkpoint_failures_total")

    @override
    def evaluated(self, found: Evaluated) -> None:
        for name, result in found.results.items():
            self._telemetry.set("evaluation_accuracy_ratio", result.accuracy.value, name)
        for name, accuracy in found.highest.items():
            self._telemetry.set("evaluation_best_accuracy_ratio", accuracy, name)
        self._telemetry.add("evaluation_seconds_total", found.seconds)
        self._telemetry.add("evaluation_failures_total", len(found.faults))

    @override
    def ended(self, finished: bool) -> None:
        self._telemetry.close(finished)


def telemetry_of(trainer: Trainer) -> Telemetry:
    """The metrics of this trainer's rank; nothing is served yet."""
    return Telemetry(
        rank=trainer.topology.rank,
        host=socket.gethostname(),
        job=trainer.run.name,
        cuda_device=trainer.device.index,
        folder=trainer.run,
        metrics=METRICS + evaluation_metrics(list(trainer.recipe.evaluation.sets)),
    )


def exporter_of(trainer: Trainer, telemetry: Telemetry, restarts: int) -> Exporter:
    """The exporter of this trainer's rank; nothing is served before it hears of the start."""
    return Exporter(
        telemetry,
        trainer.recipe,
        trainer.run,
        trainer.topology,
        trainer.head.num_classes,
        restarts=restarts,
        device=trainer.device.type,
    )


def endpoint_tls(recipe: Recipe) -> Tls | None:
    """The TLS files of the endpoints; None if the recipe names none.

    Raises:
        RecipeError: naming the key of a file that cannot be used.
    """
    log = recipe.log
    if log.metrics_certificate is None or log.metrics_key is None:
        return None
    tls = Tls(log.metrics_certificate, log.metrics_key, log.metrics_client_ca)
    try:
        tls.check()
    except ValueError as error:
        raise RecipeError(f"log.metrics_{error}") from None
    return tls
