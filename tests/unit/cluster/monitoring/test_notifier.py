"""Alerts to a webhook: what a real HTTP server receives, of a Prometheus that is faked, and of a real one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cluster.monitoring import live, notifier
from cluster.monitoring.notifier import Alert, Notifier, notifying
from cluster.telemetry import Telemetry
from tests.faces import ROOT
from tests.unit.cluster.monitoring.test_monitoring import needs_prometheus, wait_for


class Peer:
    """An HTTP server that answers GET with `alerts`, as Prometheus does, and keeps what is posted to it."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        self.received: list[dict[str, Any]] = []
        self.status = 200
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, {"status": "success", "data": {"alerts": peer.alerts}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Content-Type"] == "application/json"
                if peer.status == 200:
                    peer.received.append(body)
                self.answer(peer.status, {})

            def answer(self, status: int, body: dict[str, Any]) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def serving() -> Iterator[Peer]:
    peer = Peer()
    thread = Thread(target=peer.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield peer
    finally:
        peer.server.shutdown()
        peer.server.server_close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving() as made:
        yield made


def alert(rank: int, state: str = "firing", name: str = "RankGone") -> dict[str, Any]:
    """One alert as Prometheus reports it."""
    return {
        "labels": {"alertname": name, "job": "faces", "rank": str(rank), "severity": "page"},
        "annotations": {"summary": f"faces: rank {rank} does not answer", "runbook": "docs/runbooks.md#rankgone"},
        "state": state,
        "activeAt": "2026-01-02T03:04:05.6Z",
        "value": "0e+00",
    }


def test_the_payload_is_that_of_alertmanager(peer: Peer) -> None:
    peer.alerts = [alert(1), alert(0), alert(2, "pending")]
    Notifier(f"{peer.url}/hook", peer.url, "http://page").look()
    (body,) = peer.received
    fingerprints = [one.pop("fingerprint") for one in body["alerts"]]
    assert len(set(fingerprints)) == 2 and all(re.fullmatch("[0-9a-f]{16}", one) for one in fingerprints)
    assert body == {
        "version": "4",
        "groupKey": '{}:{alertname="RankGone", job="faces"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "webhook",
        "groupLabels": {"alertname": "RankGone", "job": "faces"},
        "commonLabels": {"alertname": "RankGone", "job": "faces", "severity": "page"},
        "commonAnnotations": {"runbook": "docs/runbooks.md#rankgone"},
        "externalURL": "http://page",
        "alerts": [
            {
                "status": "firing",
                "labels": alert(rank)["labels"],
                "annotations": alert(rank)["annotations"],
                "startsAt": "2026-01-02T03:04:05.6Z",
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "http://page",
            }
            for rank in (1, 0)
        ],
    }


def states(body: dict[str, Any]) -> tuple[str, dict[str, str]]:
    return body["status"], {one["labels"]["rank"]: one["status"] for one in body["alerts"]}


def test_a_group_is_posted_when_it_changes_and_when_it_ends(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Notifier(peer.url, peer.url, "http://page")
    peer.alerts = [alert(0), alert(0, name="Straggler")]
    sender.look()
    sender.look()
    assert [body["groupLabels"]["alertname"] for body in peer.received] == ["RankGone", "Straggler"]
    peer.alerts[0:1] = [alert(1)]
    sender.look()
    assert states(peer.received[2]) == ("firing", {"1": "firing", "0": "resolved"})
    peer.alerts = [alert(1)]
    sender.look()
    status, alerts = states(peer.received[3])
    assert (status, alerts) == ("resolved", {"0": "resolved"})
    ended = peer.received[3]["alerts"][0]["endsAt"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00", ended)
    sender.look()
    assert len(peer.received) == 4
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + notifier.REPEAT_SECONDS)
    sender.look()
    sender.look()
    assert [states(body) for body in peer.received[4:]] == [("firing", {"1": "firing"})]


def test_a_post_that_fails_is_repeated_and_reported_once(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    sender = Notifier(f"{peer.url}/secret", peer.url, "http://page")
    peer.alerts, peer.status = [alert(0)], 503
    for _ in range(3):
        sender.look()
    assert not peer.received
    peer.status = 200
    for _ in range(2):
        sender.look()
    assert [states(body) for body in peer.received] == [("firing", {"0": "firing"})]
    peer.alerts = [alert(0), alert(1)]
    sender.look()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "monitor: webhook on 127.0.0.1: HTTP Error 503: Service Unavailable; trying again every 10 s",
        "monitor: webhook on 127.0.0.1: works again",
    ]


def test_without_an_answer_of_prometheus_no_alert_ends(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as prometheus:
        sender = Notifier(peer.url, prometheus.url, "http://page")
        prometheus.alerts = [alert(0)]
        sender.look()
    sender.look()
    assert [states(body) for body in peer.received] == [("firing", {"0": "firing"})]
    assert capsys.readouterr().err.startswith("monitor: Prometheus: <urlopen error")


def test_an_answer_of_another_kind_is_reported_and_ends_no_alert(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as prometheus:
        sender = Notifier(peer.url, prometheus.url, "http://page")
        prometheus.alerts = [alert(0)]
        sender.look()
        prometheus.alerts = [{}]
        sender.look()
    assert [states(body) for body in peer.received] == [("firing", {"0": "firing"})]
    assert capsys.readouterr().err.startswith("monitor: Prometheus: 'state'; trying again")


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{"])
def test_what_speaks_no_http_or_breaks_off_is_reported_and_asked_again(
    peer: Peer, capsys: pytest.CaptureFixture[str], answer: bytes
) -> None:
    """Such an error is no OSError: it must not end the thread in which the notifier looks."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def serve() -> None:
            for _ in range(2):
                connection, _ = other.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        Thread(target=serve, daemon=True).start()
        sender = Notifier(peer.url, f"http://127.0.0.1:{other.getsockname()[1]}", "http://page")
        sender.look()
        sender.look()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("monitor: Prometheus: ") and line.endswith("; trying again every 10 s")


def test_an_alert_is_the_same_in_whatever_order_its_labels_come() -> None:
    one, same, other = (Alert(labels, {}, "") for labels in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, {"a": "1"}))
    assert one.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    "url", ["example.com/hook", "file:///etc/passwd", "https://", "https://host:port/", "https://host/a b"]
)
def test_a_webhook_is_a_url_of_a_host(url: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"--webhook: got {url!r}, wanted a URL such as https://host/path")):
        Notifier(url, "http://x", "http://page")


@needs_prometheus
def test_a_rank_that_is_gone_and_comes_back_is_posted(peer: Peer, tmp_path: Path) -> None:
    live.configure(tmp_path)
    config, rules = tmp_path / "prometheus.yml", tmp_path / "alerts.yml"
    config.write_text(config.read_text().replace("5s", "1s"))
    rules.write_text(re.sub(r"for: \d+[sm]", "for: 1s", rules.read_text()))

    def start() -> Telemetry:
        telemetry = Telemetry(rank=3, host="h", job="faces")
        telemetry.serve(0)
        telemetry.announce(tmp_path / "targets")
        return telemetry

    def posted() -> list[tuple[str, dict[str, str]]]:
        return [states(body) for body in peer.received if body["groupLabels"]["alertname"] == "RankGone"]

    with live.prometheus(tmp_path, 0) as base, notifying(Notifier(peer.url, base, "http://page"), every=0.2):
        start().close(finished=False)
        wait_for(lambda: posted() == [("firing", {"3": "firing"})])
        assert peer.received[0]["alerts"][0]["annotations"]["summary"] == "faces: rank 3 on h does not answer"
        with start():
            wait_for(lambda: posted()[1:] == [("resolved", {"3": "resolved"})])


@needs_prometheus
def test_make_monitor_posts_to_the_webhook(peer: Peer, tmp_path: Path) -> None:
    """The documented command, on a run whose loss is not finite."""
    arguments = f"ARGS=--port 0 --prometheus-port 0 --webhook {peer.url}"
    with Telemetry(rank=0, host="h", job="faces") as telemetry:
        telemetry.set("loss", float("nan"))
        telemetry.serve(0)
        telemetry.announce(tmp_path / "targets")
        command = ["make", "-s", "monitor", f"RUN={tmp_path}", arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            assert process.stdout is not None
            page = re.search(r"watching \S+: (http://\S+)", process.stdout.readline())
            assert page is not None
            wait_for(lambda: peer.received)
            process.terminate()  # make alone, as a service manager does it: the monitor and its Prometheus end, too
            process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert "See you next time!" in (tmp_path / "prometheus.log").read_text()
    body = peer.received[0]
    assert (body["status"], body["groupLabels"]["alertname"]) == ("firing", "LossNotFinite")
    assert body["externalURL"] == page[1]
    assert "not finite" in body["commonAnnotations"]["summary"]
