"""The metrics of a process, and the HTTP endpoint that Prometheus scrapes them from.

Every series carries the constant labels ``job``, ``rank`` and ``host``. Counters and histograms exist at 0 from the
start, so that a rate over them is right from the first event. A gauge appears with its first value: a scrape never
reads a 0 that nothing has set. An update costs about a microsecond; nothing is computed until a scrape.
"""

from __future__ import annotations

import errno
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
from typing import Any
from urllib.parse import quote
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from cluster.metrics import METRICS, PREFIX, Metric

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tls:
    """The certificate of an endpoint and, for mutual TLS, the authority of its clients' certificates.

    Args:
        certificate, key: PEM files.
        client_ca: PEM file of the authority; clients need a certificate signed by it. None: clients need none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Load the files once. Raises ValueError, with their names, if they cannot be used."""
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


class Telemetry:
    """The metrics of one rank, in a registry of their own, and their endpoint.

    Args:
        rank: this process' rank, from 0.
        host: name of the machine.
        job: name of the run.
        cuda_device: index of this rank's GPU; None without one.
        metrics: the table of this kind of run.
        folder: the run's folder, whose free disk space is reported; None: NaN is.
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
        self._families: dict[str, Any] = {}
        # By (kind, name, value of the metric's own label), so that an update is one look-up.
        self._series: dict[tuple[str, str, str], Any] = {}
        self._server: tuple[WSGIServer, threading.Thread] | None = None
        self._target: Path | None = None
        self._scheme = "http"
        self._checkpoint_at = 0.0
        self._metrics = {metric.name: metric for metric in metrics}
        started = time.time()
        # The device is named because a scrape runs in a thread, and CUDA's current device is per thread.
        compute: dict[str, Callable[[], float]] = {
            "elapsed_seconds": lambda: time.time() - started,
            "checkpoint_timestamp_seconds": lambda: self._checkpoint_at,
            "checkpoint_age_seconds": lambda: time.time() - (self._checkpoint_at or started),
            "resident_memory_bytes": _resident_bytes,
            "run_disk_free_bytes": lambda: _free_bytes(folder),
            "gpu_utilisation_ratio": lambda: _utilisation(cuda_device),
            "gpu_allocated_bytes": lambda: _on_gpu("memory_allocated", cuda_device),
            "gpu_peak_allocated_bytes": lambda: _on_gpu("max_memory_allocated", cuda_device),
        }
        for metric in metrics:
            self._families[metric.name] = self._family(metric)
            if metric.kind == "computed":
                self._child(metric.name).set_function(compute[metric.name])
            elif metric.kind != "gauge":
                for value in metric.values or ("",):
                    self._series[metric.kind, metric.name, value] = self._child(metric.name, value)

    def _family(self, metric: Metric) -> Any:
        labels = [*self.labels, *filter(None, [metric.label])]
        about: dict[str, Any] = {"labelnames": labels, "unit": metric.unit, "registry": self.registry}
        if metric.kind == "histogram":
            about["buckets"] = metric.buckets
        make = {"counter": Counter, "histogram": Histogram}.get(metric.kind, Gauge)
        return make(PREFIX + metric.name, metric.help, **about)

    def _child(self, name: str, value: str = "") -> Any:
        """One series of a family. prometheus_client exposes it from now on."""
        label = self._metrics[name].label
        return self._families[name].labels(**self.labels, **({label: value} if label else {}))

    def set(self, name: str, value: float, label: str = "") -> None:
        """Set a gauge. Raises ValueError for a name, kind or label value that the table does not have."""
        self._find("gauge", name, label).set(value)

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        """Add to a counter. Raises ValueError as `set` does, and for a negative amount."""
        self._find("counter", name, label).inc(amount)

    def observe(self, name: str, value: float, label: str = "") -> None:
        """Put a value into a histogram. Raises ValueError as `set` does."""
        self._find("histogram", name, label).observe(value)

    def update(self, name: str, value: float, label: str = "") -> None:
        """Set a gauge, add to a counter or observe in a histogram, as the metric's row says. Raises as `set` does."""
        kind = self._metrics[name].kind if name in self._metrics else None
        if kind == "counter":
            self.add(name, value, label)
        elif kind == "histogram":
            self.observe(name, value, label)
        else:
            self.set(name, value, label)

    def checkpoint_saved(self, seconds: float) -> None:
        """Record that a checkpoint, saved in `seconds`, has just been completed."""
        self._checkpoint_at = time.time()
        self.observe("checkpoint_save_seconds", seconds)

    def _find(self, kind: str, name: str, label: str) -> Any:
        series = self._series.get((kind, name, label))
        if series is None:
            self._check(kind, name, label)
            series = self._series[kind, name, label] = self._child(name, label)
        return series

    def _check(self, kind: str, name: str, label: str) -> None:
        if name not in self._metrics:
            raise ValueError(f"metric: got {name!r}, wanted one of {', '.join(self._metrics)}")
        metric = self._metrics[name]
        if metric.kind != kind:
            raise ValueError(f"{name}: got a {kind}'s call, wanted that of a {metric.kind}")
        if label not in (metric.values or ("",)):
            wanted = f"one of {', '.join(metric.values)}" if metric.label else "no label"
            raise ValueError(f"{name}: label: got {label!r}, wanted {wanted}")

    def serve(self, port: int, address: str = "127.0.0.1", tls: Tls | None = None) -> int | None:
        """Start the HTTP endpoint, over TLS if given, in a daemon thread; returns its port (`port` 0: any free one).

        Set what is known before: the first scrape may come at once. If the port is taken, any free one is used, with a
        warning; targets are files, so Prometheus finds it. A run must not die of its monitoring: if no endpoint can
        start, a warning says why, and the result is None.
        """
        try:
            self._server = self._start(port, address, tls)
        except OSError as error:
            reason = error.strerror or error
            logger.warning("telemetry: no endpoint on %s port %d (%s); the run has no metrics", address, port, reason)
            return None
        server = self._server[0]
        if tls is not None:
            self._scheme = "https"
            # A client that connects and sends nothing would otherwise block the loop that accepts all others.
            server.socket.do_handshake_on_connect = False  # type: ignore[attr-defined]  # it is an SSLSocket
            server.handle_error = _log_refused_client  # type: ignore[method-assign,assignment]
        return int(server.server_port)

    def _start(self, port: int, address: str, tls: Tls | None) -> tuple[WSGIServer, threading.Thread]:
        try:
            return start_http_server(port, address, self.registry, **_tls_arguments(tls))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == 0:
                raise
        server, thread = start_http_server(0, address, self.registry, **_tls_arguments(tls))
        logger.warning("telemetry: %s port %d is in use; serving on port %d", address, port, server.server_port)
        return server, thread

    def announce(self, folder: Path, num_ranks: int | None = None) -> Path:
        """Write `folder/<job>-<rank>.json`, by which Prometheus finds this endpoint (``file_sd_configs``).

        The file has the address served on, or `host` if that is every address of the machine. The folder belongs to
        this run; with `num_ranks`, files of higher ranks are deleted, which a larger run that was killed has left.

        Raises:
            RuntimeError: if `serve` has not started an endpoint.
        """
        if self._server is None:
            raise RuntimeError("telemetry: got announce without an endpoint, wanted serve first")
        address, port = str(self._server[0].server_address[0]), self._server[0].server_port
        reachable = self.labels["host"] if address in ("0.0.0.0", "::") else address
        folder.mkdir(parents=True, exist_ok=True)
        job = quote(self.labels["job"], safe="")
        for left in folder.glob("*.json"):
            rank = re.fullmatch(rf"{re.escape(job)}-(\d+)", left.stem)  # exactly: other files are not ours
            if num_ranks is not None and rank and int(rank[1]) >= num_ranks:
                left.unlink(missing_ok=True)
        self._target = folder / f"{job}-{self.labels['rank']}.json"
        # Prometheus watches the folder: it must never read half a file.
        aside = self._target.with_suffix(".tmp")
        scheme = {"__scheme__": self._scheme} if self._scheme != "http" else {}
        target = f"[{reachable}]:{port}" if ":" in reachable else f"{reachable}:{port}"
        aside.write_text(json.dumps([{"targets": [target], "labels": self.labels | scheme}]))
        aside.replace(self._target)
        return self._target

    def close(self, finished: bool = True) -> None:
        """Stop the endpoint and its thread; a second call does nothing.

        The announcement is deleted only if the rank has `finished`. A rank that failed leaves it, like one that was
        killed, so that Prometheus sees a target that is down and the alert RankGone fires.
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


def _log_refused_client(request: Any, client: Any) -> None:  # noqa: ARG001
    """A client without the right certificate is not an error of the run: socketserver would print a traceback."""
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
    except Exception:  # nvidia-ml-py is missing, or the driver refuses: an exception would fail the whole scrape
        return math.nan


def _on_gpu(reading: str, device: int | None) -> float:
    """A number of `torch.cuda`, which only a process with a GPU needs to import."""
    return 0.0 if device is None else float(getattr(import_module("torch.cuda"), reading)(device))
