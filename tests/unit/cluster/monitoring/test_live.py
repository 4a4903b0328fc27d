"""The live page as a file, and its server; tests/end_to_end/test_monitor.py draws it in a browser."""

import errno
import json
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
import yaml

from cluster.monitoring import live
from cluster.monitoring.panels import PANELS, TILES
from cluster.monitoring.runbooks import read_runbooks
from tests.unit.cluster.monitoring.test_monitoring import has_ipv6, needs_prometheus, wait_for
from tests.web import serving

MONITORING = Path(live.__file__).parent
ALONE = "127.44.3.2"  # on 127.0.0.1 another process could be given a port that this test wants


class Echo(BaseHTTPRequestHandler):
    """Stands in for Prometheus: refuses with what was asked."""

    def do_GET(self) -> None:
        body = json.dumps({"status": "error", "error": self.path}).encode()
        self.send_response(422)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read().decode()


def test_the_page_is_whole_in_one_file() -> None:
    page = live.build_page()
    assert not re.findall(r"/\*[A-Z]+\*/", page)
    # nothing is loaded from elsewhere
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)\w+""", page)
    held = re.search(r'<script type="application/json" id="table">(.*?)</script>', page, re.DOTALL)
    assert held is not None
    table = json.loads(held[1])
    assert [tile["query"] for tile in table["tiles"]] == [tile.query for tile in TILES]
    assert {group: len(panels) for group, panels in table["panels"].items()} == {g: len(p) for g, p in PANELS.items()}
    assert table["panels"].keys() == table["titles"].keys()
    assert set(table["runbooks"]) == set(read_runbooks())


def test_a_text_cannot_end_the_script_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TITLES", {"run": "</script><b>"})
    assert "</script><b>" not in live.build_page()


def test_only_queries_are_forwarded() -> None:
    behind = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    Thread(target=behind.serve_forever, daemon=True).start()
    with live.serving("127.0.0.1", 0, f"http://127.0.0.1:{behind.server_port}") as page:
        assert get(page)[1].startswith("<!doctype html>")
        status, answer = get(f"{page}/api/v1/query?query=a%2Bb")
        assert (status, json.loads(answer)["error"]) == (422, "/api/v1/query?query=a%2Bb")
        for path in ("/api/v1/admin/tsdb/snapshot", "/api/v1/query/../status/config", "/-/quit", "/metrics"):
            assert get(page + path)[0] == 404
        behind.shutdown()
        behind.server_close()
        status, answer = get(f"{page}/api/v1/alerts")
        assert status == 502
        assert json.loads(answer)["error"].startswith("Prometheus does not answer")


def test_an_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(live.MonitorError, match=r"none: no such folder; wanted that of a run"):
        live.configure(tmp_path / "none")
    with (
        pytest.raises(
            live.MonitorError, match=r"--address 192\.0\.2\.1: Cannot assign requested address; wanted an addr"
        ),
        live.serving("192.0.2.1", 0, "http://x"),
    ):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(live.MonitorError, match="'prometheus' not found: install it"), live.prometheus(tmp_path, 0):
        pass


def test_a_port_that_cannot_be_had_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--port", "--prometheus-port"):
        monkeypatch.setattr(sys, "argv", ["live", "run", option, "70000"])
        with pytest.raises(SystemExit, match="2"):
            live.main()
        assert f"argument {option}: got '70000', wanted a port: 0 to 65535" in capsys.readouterr().err

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")  # as those below 1024 are, but to root

    monkeypatch.setattr(live, "free_or_any", refuse)
    words = r"--port 80: Permission denied; wanted one above 1023"
    with pytest.raises(live.MonitorError, match=words), live.serving("127.0.0.1", 80, "http://x"):
        pass


def test_a_page_that_is_closed_before_its_answers_come_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A reload leaves dozens of queries so."""
    gone = Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert gone.wait(10)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(bytes(1 << 24))

        def log_message(self, *_: object) -> None:
            pass

    with serving(Slow) as behind, live.serving("127.0.0.1", 0, behind) as page:
        with socket.create_connection(("127.0.0.1", int(page.rpartition(":")[2]))) as client:
            client.sendall(b"GET /api/v1/query?query=up HTTP/1.0\r\n\r\n")
            wait_for(answering)
        gone.set()
        wait_for(lambda: not answering())
    assert capsys.readouterr().err == ""


def answering() -> bool:
    """Whether a thread of a server is at a request."""
    return any("process_request_thread" in thread.name for thread in threading.enumerate())


def test_a_page_whose_port_is_in_use_takes_another() -> None:
    with live.serving("127.0.0.1", 0, "http://x") as first:
        port = int(first.rpartition(":")[2])
        with live.serving("127.0.0.1", port, "http://x") as second:
            assert second != first
            assert get(second)[0] == 200
        with live.serving(ALONE, port, "http://x") as third:
            assert third == f"http://{ALONE}:{port}", "a port that is free is taken"


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on loopback")
def test_a_page_has_an_ipv6_address_in_brackets() -> None:
    with live.serving("::1", 0, "http://x") as page:
        assert page.startswith("http://[::1]:")
        assert get(page)[0] == 200


@needs_prometheus
def test_a_prometheus_whose_port_is_in_use_takes_another(tmp_path: Path) -> None:
    live.configure(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with live.prometheus(tmp_path, port) as base:
            assert base != f"http://127.0.0.1:{port}"
            assert get(f"{base}/-/ready")[0] == 200


def test_a_prometheus_that_does_not_start_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "prometheus"
    lines = ('echo "$@" >&2', "echo lock DB directory: resource temporarily unavailable >&2", "exit 1")
    program.write_text("\n".join(["#!/bin/sh", *lines]))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(live.MonitorError, match="did not start: lock DB directory"), live.prometheus(run, 0):
        pass
    asked = (run / "prometheus.log").read_text().split()
    assert "--storage.tsdb.retention.time=1y" in asked, "a run may take months"


def test_a_path_with_any_signs_is_that_of_the_configuration(tmp_path: Path) -> None:
    ca = tmp_path / 'my: "authority" #1.pem'
    live.configure(tmp_path, ca)
    (scraped,) = yaml.safe_load((tmp_path / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped["tls_config"] == {"ca_file": str(ca.resolve())}


def test_a_runbook_in_another_form_is_named(tmp_path: Path) -> None:
    (tmp_path / "runbooks.md").write_text("# Runbooks\n\n## RankGone\n\nA rank is gone.\n")
    with pytest.raises(ValueError, match="runbooks: got '## RankGone', wanted a meaning, what the query shows"):
        read_runbooks(tmp_path / "runbooks.md")


def test_a_prometheus_that_neither_answers_nor_ends_is_given_up_and_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "prometheus"
    program.write_text("#!/bin/sh\ntrap '' TERM\necho reading again >&2\nwhile :; do sleep 0.1; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(live, "START_SECONDS", 3)
    monkeypatch.setattr(live, "END_SECONDS", 1)
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(live.MonitorError, match="did not answer within 3 s: reading again"), live.prometheus(run, 0):
        pass


def test_compose_mounts_existing_files_and_grafana_finds_them() -> None:
    compose = yaml.safe_load((MONITORING / "compose.yaml").read_text())
    services = compose["services"]
    mounts: dict[str, Path] = {}
    for service in services.values():
        assert service["network_mode"] == "host"  # endpoints listen on loopback
        for volume in service["volumes"]:
            source, target = re.sub(r"\$\{RUN:.*?\}", "RUN", volume).split(":")[:2]
            assert source in compose["volumes"] or source == "RUN/targets" or (MONITORING / source).exists(), source
            mounts[target] = MONITORING / source
    config = yaml.safe_load(mounts["/etc/prometheus/prometheus.yml"].read_text())
    assert config["rule_files"] == ["alerts.yml"] and "/etc/prometheus/alerts.yml" in mounts
    assert config["scrape_configs"][0]["file_sd_configs"][0]["files"] == ["targets/*.json"]
    assert "/etc/prometheus/targets" in mounts

    provisioning = mounts["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in services["prometheus"]["command"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "spherescale.yaml").read_text())["providers"]
    dashboards = mounts[provider["options"]["path"]]
    assert {path.stem for path in dashboards.glob("*.json")} == {*PANELS, "shards"}
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (dashboards / Path(home).name).is_file()
