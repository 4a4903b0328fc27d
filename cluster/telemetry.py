"""What a process tells Prometheus: a table of metrics for each kind of run, and the object that it reports to.

A table is data: a dashboard, an alert or a document names what stands here and nothing else. Every series carries
the constant labels ``job``, ``rank`` and ``host``, and all series exist from the start, at 0, so that a rate over
them is right from the first event. An update costs about a microsecond; nothing is computed until a scrape.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

logger = logging.getLogger(__name__)

PREFIX = "spherescale_"
PERCENTILES = ("p05", "p25", "p50", "p75", "p95")
PARTS = ("data_wait", "forward", "backward", "head", "communication", "update")
REASONS = ("not_finite", "spike", "left_out")

_UNITS = ("seconds", "bytes")
_NOT_BASE_UNITS = ("ms", "milliseconds", "microseconds", "minutes", "hours", "kb", "mb", "gb", "mib", "gib", "percent")


@dataclass(frozen=True)
class Tls:
    """How an endpoint shows who it is and, with `client_ca`, whom alone it answers (mutual TLS).

    Args:
        certificate, key: PEM files.
        client_ca: PEM file of the authority that signs the certificates of those who may read; None: everybody may.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Load the files once. Raises ValueError, naming them, where they do not serve."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # A key with a pass phrase would ask for it on the terminal of every rank.
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except OSError as error:
            what = f"certificate {self.certificate}, key {self.key}: {error.strerror or error}"
            raise ValueError(f"{what}; wanted a PEM certificate and its key, without a pass phrase") from None
        try:
            context.load_verify_locations(self.client_ca) if self.client_ca else None
        except OSError as error:
            raise ValueError(f"client_ca {self.client_ca}: {error.strerror or error}; wanted a PEM file") from None


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Args:
        name: as exposed, without `PREFIX`; ends with its unit, and with ``_total`` if and only if a counter.
        kind: "gauge" is set, "counter" added to, "histogram" observed; "computed" is a gauge read at the scrape.
        help: what it is, for a person.
        unit: a base unit, "seconds" or "bytes", or "" for a plain number.
        label, values: one label and all of its values, where a metric is split.
        buckets: upper bounds of a histogram, in its unit.

    Raises:
        ValueError: when a row contradicts itself or Prometheus' naming conventions.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram", "computed"]
    help: str
    unit: str = ""
    label: str = ""
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        stem = self.name.removesuffix("_total")
        suffix = stem.rsplit("_", 1)[-1]
        for wrong, wanted in (
            (not re.fullmatch(r"[a-z][a-z0-9_]*", self.name), "lower case letters, digits and underscores"),
            ((self.kind == "counter") != self.name.endswith("_total"), "_total on counters, and only there"),
            (suffix in _NOT_BASE_UNITS, f"a base unit ({', '.join(_UNITS)})"),
            ((suffix if suffix in _UNITS else "") != self.unit, f"a name that ends with its unit {self.unit!r}"),
            (bool(self.label) != bool(self.values), "a label together with all of its values"),
            ((self.kind == "histogram") != bool(self.buckets), "buckets on histograms, and only there"),
        ):
            if wrong:
                raise ValueError(f"metric: got {self.name!r} ({self.kind}), wanted {wanted}")


_STEP_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SAVE_BUCKETS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)

METRICS = (
    Metric("ranks", "gauge", "Ranks that the run was started with."),
    Metric("step", "gauge", "Optimizer steps since the run began, resumes included."),
    Metric("position_samples", "gauge", "Place in the order of training: samples of all steps, resumes included."),
    Metric("epoch", "gauge", "Passes over the data since the run began, with the fraction of the current one."),
    Metric("loss", "gauge", "Mean loss of the latest global batch."),
    Metric("target_cosine", "gauge", "Mean cosine of a sample to its own class in the latest global batch."),
    Metric("target_angle_radians", "gauge", "Angle to the own class.", label="percentile", values=PERCENTILES),
    Metric("target_beyond_pi_ratio", "gauge", "Share of samples whose angle times m is more than pi."),
    Metric("loss_over_chance_ratio", "gauge", "Latest loss over ln C, what guessing among C classes costs."),
    Metric("gradient_norm", "gauge", "Length of the backbone's gradient, averaged over ranks, before weight decay."),
    Metric("embedding_norm", "gauge", "Mean length of an embedding in the latest global batch."),
    Metric("margin_lambda", "gauge", "Annealing weight of the margin at the latest step; small means full margin."),
    Metric("learning_rate", "gauge", "Learning rate of the latest step."),
    Metric("global_samples_per_second", "gauge", "Samples a second over all ranks, smoothed by the loop."),
    Metric("rank_samples_per_second", "gauge", "Samples a second of this rank, smoothed by the loop."),
    Metric("samples_total", "counter", "Samples that this process has trained on."),
    Metric("step_seconds", "histogram", "Wall time of a whole step.", "seconds", buckets=_STEP_BUCKETS),
    Metric("step_part_seconds_total", "counter", "Wall time by part of the step.", "seconds", "part", PARTS),
    Metric("skipped_steps_total", "counter", "Steps of which nothing was applied.", label="reason", values=REASONS),
    Metric(
        "communication_bytes_total",
        "counter",
        "Bytes that this rank sent, by shapes, were all collectives rings.",
        "bytes",
        "part",
        ("head", "backbone"),
    ),
    Metric("estimated_end_timestamp_seconds", "gauge", "When the last step will be done, at this pace.", "seconds"),
    Metric("decode_failures_total", "counter", "Samples that could not be decoded and were left out."),
    Metric("prefetch_batches", "gauge", "Decoded batches that wait for the loop; 0 means the loop waits."),
    Metric("checkpoint_interval_steps", "gauge", "Steps from one checkpoint to the next."),
    Metric("checkpoint_timestamp_seconds", "computed", "When the last one was complete; 0: none yet.", "seconds"),
    Metric("checkpoint_age_seconds", "computed", "Since the last checkpoint or, before it, the start.", "seconds"),
    Metric("checkpoint_bytes", "gauge", "Size of the last checkpoint, all ranks' files; 0: none yet.", "bytes"),
    Metric("checkpoint_save_seconds", "histogram", "Time to save.", "seconds", buckets=_SAVE_BUCKETS),
    Metric("checkpoint_stall_seconds_total", "counter", "Time that training stood still for saves.", "seconds"),
    Metric("checkpoint_failures_total", "counter", "Saves that failed; the checkpoints before them stay."),
    Metric("restarts_total", "counter", "Times that the run was started again before this process."),
    Metric("resident_memory_bytes", "computed", "Resident memory of this process.", "bytes"),
    Metric("run_free_bytes", "computed", "Free room where the run's folder lies, as this host sees it.", "bytes"),
    Metric("head_planned_bytes", "gauge", "The planner's word on the head: all it takes on the fullest rank.", "bytes"),
    Metric("head_held_bytes", "gauge", "What this rank's rows, their momentum and gradient take.", "bytes"),
    Metric("gpu_utilisation_ratio", "computed", "Share of time that the GPU was busy; NaN where NVML does not tell."),
    Metric("gpu_allocated_bytes", "computed", "GPU memory in tensors now; 0 without a GPU.", "bytes"),
    Metric("gpu_peak_allocated_bytes", "computed", "Most GPU memory ever in tensors; 0 without a GPU.", "bytes"),
)

SHARDING_METRICS = (
    Metric("sharding_samples", "gauge", "Samples of the source, so many as there are to do; twice for Parquet."),
    Metric("sharded_samples_total", "counter", "Samples done: in finished tars, found finished, or set aside."),
    Metric("sharded_bytes_total", "counter", "Bytes of finished tars.", "bytes"),
    Metric("set_aside_samples_total", "counter", "Samples that could not be used; rejected.tsv will name them."),
    Metric("elapsed_seconds", "computed", "Since the start of this run.", "seconds"),
)


def evaluation_metrics(sets: Sequence[str]) -> tuple[Metric, ...]:
    """Rows beside a run's `METRICS`: what it reaches on the sets that its recipe names; none without sets.

    All are 0 until the first evaluation.
    """
    if not sets:
        return ()
    rows = (
        ("evaluation_accuracy_ratio", "Share of pairs told right at the latest evaluation, by set."),
        ("evaluation_best_accuracy_ratio", "The most that any evaluation of this run reached, by set."),
    )
    seconds = Metric("evaluation_seconds_total", "counter", "Time that training stood still for it.", "seconds")
    return *(Metric(name, "gauge", about, label="set", values=tuple(sets)) for name, about in rows), seconds


class Telemetry:
    """The metrics of one rank, in a registry of their own, and the endpoint that shows them.

    Args:
        rank: place among all ranks.
        host: name of the machine.
        job: name of the run.
        cuda_device: index of this rank's GPU; None without one.
        metrics: the table of this kind of run.
        folder: where the run writes.
    """

    def __init__(
        self,
        *,
        rank: int,
        host: str,
        job: str,
        cuda_device: int | None = None,
        metrics: Sequence[Metric] = METRICS,
        folder: Path | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self.labels = {"job": job, "rank": str(rank), "host": host}
        # By (kind, name, value of the metric's own label); made here, so that an update is one look-up.
        self._series: dict[tuple[str, str, str], Any] = {}
        self._server: tuple[WSGIServer, threading.Thread] | None = None
        self._target: Path | None = None
        self._scheme = "http"
        self._checkpoint_at = 0.0
        self._metrics = metrics
        started = time.time()
        # The device is named because a scrape runs in a thread, and CUDA's current device is per thread.
        compute: dict[str, Callable[[], float]] = {
            "elapsed_seconds": lambda: time.time() - started,
            "checkpoint_timestamp_seconds": lambda: self._checkpoint_at,
            "checkpoint_age_seconds": lambda: time.time() - (self._checkpoint_at or started),
            "resident_memory_bytes": _resident_bytes,
            "run_free_bytes": lambda: _free_bytes(folder),
            "gpu_utilisation_ratio": lambda: _utilisation(cuda_device),
            "gpu_allocated_bytes": lambda: _on_gpu("memory_allocated", cuda_device),
            "gpu_peak_allocated_bytes": lambda: _on_gpu("max_memory_allocated", cuda_device),
        }
        for metric in metrics:
            self._register(metric)
            if metric.kind == "computed":
                self._series["computed", metric.name, ""].set_function(compute[metric.name])

    def _register(self, metric: Metric) -> None:
        labels = [*self.labels, *filter(None, [metric.label])]
        about: dict[str, Any] = {"labelnames": labels, "unit": metric.unit, "registry": self.registry}
        if metric.kind == "histogram":
            about["buckets"] = metric.buckets
        make = {"counter": Counter, "histogram": Histogram}.get(metric.kind, Gauge)
        family = make(PREFIX + metric.name, metric.help, **about)
        for value in metric.values or ("",):
            own = {metric.label: value} if metric.label else {}
            self._series[metric.kind, metric.name, value] = family.labels(**self.labels, **own)

    def set(self, name: str, value: float, label: str = "") -> None:
        """Set a gauge. Raises ValueError for a name, kind or label value that the table does not have."""
        self._find("gauge", name, label).set(value)

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        """Add to a counter. Raises ValueError as `set` does, and for a negative amount."""
        self._find("counter", name, label).inc(amount)

    def observe(self, name: str, value: float, label: str = "") -> None:
        """Put a value into a histogram. Raises ValueError as `set` does."""
        self._find("histogram", name, label).observe(value)

    def checkpoint_saved(self, seconds: float) -> None:
        """Note that a checkpoint, `seconds` in the saving, is complete as of now."""
        self._checkpoint_at = time.time()
        self.observe("checkpoint_save_seconds", seconds)

    def _find(self, kind: str, name: str, label: str) -> Any:
        try:
            return self._series[kind, name, label]
        except KeyError:
            known = {metric.name: metric for metric in self._metrics}
            if name not in known:
                raise ValueError(f"metric: got {name!r}, wanted one of {', '.join(known)}") from None
            if known[name].kind != kind:
                raise ValueError(f"{name}: got a {kind}'s call, wanted that of a {known[name].kind}") from None
            wanted = f"one of {', '.join(known[name].values)}" if known[name].label else "no label"
            raise ValueError(f"{name}: label: got {label!r}, wanted {wanted}") from None

    def serve(self, port: int, address: str = "127.0.0.1", tls: Tls | None = None) -> int | None:
        """Start the HTTP endpoint, over TLS if asked, in a daemon thread; returns its port (`port` 0: any free one).

        A run must not die of its monitoring: when the endpoint cannot start, one warning says why and what to do,
        and the result is None.
        """
        try:
            self._server = start_http_server(port, address, self.registry, **_tls_arguments(tls))
        except OSError as error:
            logger.warning(
                "telemetry: no endpoint on %s port %d (%s); the run goes on without one: "
                "free the port, or choose another telemetry port (0 takes any free one)",
                address,
                port,
                error.strerror or error,
            )
            return None
        server = self._server[0]
        if tls is not None:
            self._scheme = "https"
            # Else one client that connects and is silent would stop the loop that accepts all others.
            server.socket.do_handshake_on_connect = False  # type: ignore[attr-defined]  # it is an SSLSocket
            server.handle_error = _turned_away  # type: ignore[method-assign,assignment]
        return int(server.server_port)

    def announce(self, folder: Path, num_ranks: int | None = None) -> Path:
        """Write `folder/<job>-<rank>.json`, by which Prometheus finds this endpoint (``file_sd_configs``).

        It names the address served on, or `host` where that is every address of the machine. The folder is this
        run's; with `num_ranks`, files of ranks beyond go, which a killed and larger run of it may have left.

        Raises:
            RuntimeError: before `serve` has started an endpoint.
        """
        if self._server is None:
            raise RuntimeError("telemetry: got announce without an endpoint, wanted serve first")
        address, port = str(self._server[0].server_address[0]), self._server[0].server_port
        reachable = self.labels["host"] if address in ("0.0.0.0", "::") else address
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.json"):
            if num_ranks is not None and int(left.stem.rpartition("-")[2]) >= num_ranks:
                left.unlink(missing_ok=True)
        self._target = folder / f"{quote(self.labels['job'], safe='')}-{self.labels['rank']}.json"
        # Prometheus watches the folder: it must never read half a file.
        aside = self._target.with_suffix(".tmp")
        scheme = {"__scheme__": self._scheme} if self._scheme != "http" else {}
        aside.write_text(json.dumps([{"targets": [f"{reachable}:{port}"], "labels": self.labels | scheme}]))
        aside.replace(self._target)
        return self._target

    def close(self, finished: bool = True) -> None:
        """Stop the endpoint and its thread; twice is harmless.

        The announcement goes only when the rank has `finished`: one that failed leaves it, as a killed one does, so
        that Prometheus sees a target that is down and raises RankGone, and a run that ended well as no target.
        """
        if self._target is not None and finished:
            self._target.unlink(missing_ok=True)
        self._target = None
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
            self._server = None

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(finished=kind is None)


def _tls_arguments(tls: Tls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    files = {"certfile": str(tls.certificate), "keyfile": str(tls.key)}
    return files | ({"client_cafile": str(tls.client_ca), "client_auth_required": True} if tls.client_ca else {})


def _turned_away(request: Any, client: Any) -> None:  # noqa: ARG001
    """A client without the right certificate is no fault of the run: socketserver would print a traceback."""
    logger.debug("telemetry: %s: %s", client, sys.exc_info()[1])


def _free_bytes(folder: Path | None) -> float:
    try:
        return math.nan if folder is None else shutil.disk_usage(folder).free
    except OSError:
        return math.nan


def _resident_bytes() -> float:
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:  # no /proc outside Linux
        return math.nan
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _utilisation(device: int | None) -> float:
    try:
        return math.nan if device is None else _on_gpu("utilization", device) / 100
    except Exception:  # nvidia-ml-py is missing, or its driver refuses: a reading that raises would fail the scrape
        return math.nan


def _on_gpu(reading: str, device: int | None) -> float:
    """A number of `torch.cuda`, which only a process that has a GPU needs to load."""
    return 0.0 if device is None else float(getattr(import_module("torch.cuda"), reading)(device))
