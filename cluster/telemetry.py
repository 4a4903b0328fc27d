"""What a process tells Prometheus: the object that a run reports to, and the endpoint that shows it.

Every series carries the constant labels ``job``, ``rank`` and ``host``, and all series exist from the start, at 0, so
that a rate over them is right from the first event. An update costs about a microsecond; nothing is computed until a
scrape.
"""

from __future__ import annotations

import json
import logging
import math
import os
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
        self._kinds = {metric.name: metric.kind for metric in metrics}
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

    def update(self, name: str, value: float, label: str = "") -> None:
        """Set a gauge, add to a counter or observe in a histogram, as the metric's row says. Raises as `set` does."""
        kind = self._kinds.get(name)
        if kind == "counter":
            self.add(name, value, label)
        elif kind == "histogram":
            self.observe(name, value, label)
        else:
            self.set(name, value, label)

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
