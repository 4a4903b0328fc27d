"""Watch a run with Prometheus and a live page of panels and alerts: ``python -m cluster.monitoring.live RUN``.

Prometheus stores its data in RUN/prometheus, so that the page also works after the run has ended. The page queries it
through this server, which forwards queries and nothing else. Ctrl-C ends both. For endpoints with TLS, give --ca and,
if they want a client's certificate, --certificate and --key.
"""

from __future__ import annotations

import argparse
import errno
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from cluster.monitoring.notifier import Notifier, notifying
from cluster.monitoring.panels import PANELS, TILES, TITLES
from cluster.monitoring.runbooks import read_runbooks
from cluster.ports import port_of
from cluster.stop import exit_with

HERE = Path(__file__).parent
START_SECONDS = 600  # of a Prometheus that reads again what it has not yet put in order: minutes after months
END_SECONDS = 60
QUERY = re.compile(r"/api/v1/(query|query_range|alerts)(\?.*)?")


class MonitorError(RuntimeError):
    """Why a run cannot be watched, in one line."""


def main() -> int:
    """Start Prometheus and the page, and end both at Ctrl-C or SIGTERM."""
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        configure(args.run, args.ca, args.certificate, args.key)
        with (
            prometheus(args.run, args.prometheus_port) as base,
            serving(args.address, args.port, base) as page,
            notifying(Notifier(args.webhook, base, page)) if args.webhook else nullcontext(),
        ):
            print(f"watching {args.run}: {page}   (Prometheus itself: {base}; Ctrl-C ends both)", flush=True)
            if words := nothing_to_watch(args.run):
                print(f"monitor: {words}", file=sys.stderr, flush=True)
            signal.pause()
    except (MonitorError, ValueError, OSError) as error:
        print(f"monitor: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def nothing_to_watch(run: Path) -> str:
    """What to know if no rank serves metrics in a run's folder; empty if one does."""
    if any((run / "targets").glob("*.json")):
        return ""
    return (
        f"{run}: no rank serves metrics there now; the page has what a monitor saw while it trained, "
        f"and fills if it trains again; every logged step is in {run / 'metrics.jsonl'}"
    )


def configure(run: Path, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None) -> None:
    """Write Prometheus' configuration and alerts into the run's folder, with the TLS files for its endpoints.

    Raises:
        MonitorError: if there is no such folder.
    """
    if not run.is_dir():
        raise MonitorError(f"{run}: no such folder; wanted that of a run, as RUN=runs/casia20")
    shutil.copy(HERE / "alerts.yml", run)
    text = (HERE / "prometheus.yml").read_text()
    files = {"ca_file": ca, "cert_file": certificate, "key_file": key}
    lines = [f"      {name}: {json.dumps(str(path.resolve()))}" for name, path in files.items() if path]
    if lines:
        text += "\n".join(["    tls_config:", *lines, ""])
    (run / "prometheus.yml").write_text(text)


@contextmanager
def prometheus(run: Path, port: int) -> Iterator[str]:
    """Run a Prometheus on the run's folder while the context lasts; yields its URL.

    `port` 0 takes any free port, and so does one that is in use.

    Raises:
        MonitorError: if it is not installed or does not start in time, with the last line of its log.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise MonitorError("'prometheus' not found: install it (Debian: apt-get install prometheus)")
    log = run / "prometheus.log"
    command = [program, f"--config.file={run / 'prometheus.yml'}", f"--storage.tsdb.path={run / 'prometheus'}"]
    # A run may take months; by default Prometheus deletes data after 15 days.
    command += [f"--web.listen-address=127.0.0.1:{free_or_any('127.0.0.1', port)}", "--storage.tsdb.retention.time=1y"]
    with log.open("w") as output:
        # In a session of its own, since Ctrl-C on the terminal is for this process, which then ends Prometheus.
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield _wait_until_ready(process, log)
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:  # what it has stored survives that, as it would a power cut
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        listening = re.search(r"address=127\.0\.0\.1:([1-9]\d*)", log.read_text())
        if listening and _answers(f"http://127.0.0.1:{listening[1]}/-/ready"):
            return f"http://127.0.0.1:{listening[1]}"
        time.sleep(0.1)
    lines = log.read_text().strip().splitlines()
    how = "did not start" if process.poll() is not None else f"did not answer within {START_SECONDS} s"
    raise MonitorError(f"Prometheus {how}: {lines[-1] if lines else 'no message'} (whole log: {log})")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except OSError:
        return False


@contextmanager
def serving(address: str, port: int, base: str) -> Iterator[str]:
    """Serve the page while the context lasts; yields its URL.

    `port` 0 takes any free port, and so does one that is in use.

    Raises:
        MonitorError: if the address or the port cannot be listened on.
    """
    server_class = type("_PageServer", (_Server,), {"address_family": _family(address)})
    try:
        where = (address, free_or_any(address, port))
        server = server_class(where, partial(_Handler, base, build_page().encode()))
    except PermissionError as error:
        raise MonitorError(f"--port {port}: {error.strerror}; wanted one above 1023, or 0 for any free one") from None
    except OSError as error:
        raise MonitorError(f"--address {address}: {error.strerror}; wanted an address of this machine") from None
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{f'[{address}]' if ':' in address else address}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def free_or_any(address: str, port: int) -> int:
    """`port` if it is free on `address`, else 0, which takes any free one.

    Raises:
        OSError: if the address is not of this machine.
    """
    with socket.socket(_family(address)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do, or a recent port seems taken
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return 0
    return port


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def build_page() -> str:
    """The page as one file: markup, style, script, and the table of panels that it draws."""
    table = {
        "titles": TITLES,
        "tiles": list(map(asdict, TILES)),
        "panels": {group: list(map(asdict, panels)) for group, panels in PANELS.items()},
        "runbooks": {alert: asdict(runbook) for alert, runbook in read_runbooks().items()},
    }
    source = HERE / "page"
    parts = {
        "/*STYLE*/": (source / "style.css").read_text(),
        "/*SCRIPT*/": (source / "charts.js").read_text() + (source / "page.js").read_text(),
        "/*TABLE*/": json.dumps(table).replace("</", "<\\/"),  # a text must not end the script element that holds it
    }
    page = (source / "page.html").read_text()
    for place, text in parts.items():
        page = page.replace(place, text)
    return page


class _Server(ThreadingHTTPServer):
    """Takes it for no error that a page which is reloaded or closed does not wait for its answers."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """As `socketserver` does, but for a client that is gone."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Sends the page and forwards its queries to Prometheus: one origin, as browsers want it."""

    def __init__(self, base: str, page: bytes, *args: object) -> None:
        self._base, self._page = base, page
        super().__init__(*args)  # type: ignore[arg-type]  # the server's own three

    def do_GET(self) -> None:
        """Answer one request."""
        if self.path == "/":
            self._send(200, "text/html; charset=utf-8", self._page)
        elif QUERY.fullmatch(self.path):
            self._send(*_ask(self._base + self.path))
        else:
            self._send(404, "text/plain", b"not found: wanted / or a query\n")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: the page sends dozens of queries at each refresh."""


def _ask(url: str) -> tuple[int, str, bytes]:
    """Prometheus' answer or refusal; if it does not answer, an error in the same format."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, "application/json", answer.read()
    except urllib.error.HTTPError as refusal:
        return refusal.code, "application/json", refusal.read()
    except OSError as error:
        gone = {"status": "error", "errorType": "unavailable", "error": f"Prometheus does not answer: {error}"}
        return 502, "application/json", json.dumps(gone).encode()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.monitoring.live",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder, during the run or after it")
    parser.add_argument(
        "--port", type=port_of, default=9099, help="the page's port (default %(default)s; 0 or in use: any free one)"
    )
    parser.add_argument("--address", default="127.0.0.1", help="the page's address (default %(default)s)")
    # Not 9090: Debian's package starts a Prometheus of its own there.
    parser.add_argument("--prometheus-port", type=port_of, default=0, metavar="PORT", help="(default 0: any free one)")
    parser.add_argument("--webhook", metavar="URL", help="post alerts there, as Prometheus' Alertmanager does")
    parser.add_argument(
        "--ca", type=Path, metavar="FILE", help="authority that signed the endpoints' certificates (PEM)"
    )
    parser.add_argument(
        "--certificate", type=Path, metavar="FILE", help="a client's certificate, if endpoints want one (PEM)"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="key of the client's certificate (PEM)")
    return parser


if __name__ == "__main__":
    exit_with(main)
