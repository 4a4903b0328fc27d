"""Two real hosts and a real Prometheus. One host is lost: the alert, the rank that it names, and the recovery."""

from __future__ import annotations

import html
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.monitoring import live
from cluster.monitoring.runbooks import read_runbooks
from tests.end_to_end.browser import CHROMIUM, draw, picture
from tests.end_to_end.hosts import Hosts, why_not
from tests.end_to_end.launcher import write_recipe
from tests.end_to_end.supervised import Supervised
from tests.faces import write_shards
from tests.unit.cluster.monitoring.test_monitoring import query, wait_for

REASON = why_not()
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.skipif(not shutil.which("prometheus"), reason="needs prometheus (Debian: apt-get install prometheus)"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)"),
]

# The runbook's query evaluates every 5 s; with scrapes as frequent as here, a rank can come and go in between.
SEEN = "max_over_time(timestamp(up == 1)[1h:5s])"
GONE = 'ALERTS{alertname="RankGone", alertstate="firing"}'


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with Hosts(tmp_path / "hosts", 2) as made:
        yield made


def supervise(folder: Path, hosts: Hosts) -> Supervised:
    """A run without an end. After a host is lost, the other ranks end later than Prometheus notices the loss."""
    recipe = write_recipe(folder / "recipe.yaml", write_shards(folder / "set"), steps=10**7, port=0)
    text = recipe.read_text().replace("log: {every: 1,", "log: {every: 5, metrics_address: 0.0.0.0,")
    recipe.write_text(text.replace("checkpoint: {every: 5}", "checkpoint: {every: 20}"))
    where: list[str | Path] = ["--hostfile", hosts.hostfile(), "--export", "GLOO_SOCKET_IFNAME=eth0"]
    environment = {"PDSH_SSH_ARGS_APPEND": hosts.ssh_arguments}
    return Supervised(folder, where, recipe, folder / "run", environment, step_seconds=25)


def configure(run: Path, hosts: Hosts) -> None:
    """As `make monitor`, but with seconds instead of minutes, and addresses for the hosts' names, which no DNS has."""
    live.configure(run)
    config, rules = run / "prometheus.yml", run / "alerts.yml"
    names = "".join(
        f'      - {{source_labels: [__address__], regex: "{name}:(.*)", target_label: __address__, '
        f'replacement: "{address}:$1"}}\n'
        for name, address in zip(hosts.names, hosts.addresses, strict=True)
    )
    config.write_text(config.read_text().replace("5s", "2s") + "    relabel_configs:\n" + names)
    rules.write_text(re.sub(r"for: \d+[sm]", "for: 2s", rules.read_text()))


def test_a_lost_host_is_reported_named_and_recovered_from(hosts: Hosts, tmp_path: Path) -> None:
    supervised = supervise(tmp_path, hosts)
    run = supervised.run
    run.mkdir(exist_ok=True)
    configure(run, hosts)
    try:
        with live.prometheus(run, 0) as base, live.serving("127.0.0.1", 0, base) as page:
            supervised.wait_for(lambda: supervised.step >= 20 and len(query(base, SEEN)) == 2)

            os.kill(supervised.process.pid, signal.SIGSTOP)  # or a restarted run would delete the lost rank's target
            hosts.kill(1)
            named = wait_for(lambda: [labels for labels, _ in query(base, GONE) if labels["rank"] == "1"])
            assert [(labels["job"], labels["host"]) for labels in named] == [("run", "host2")]

            answer = query(base, read_runbooks()["RankGone"].query.replace("$job", "run"))
            assert (answer[0][0]["rank"], answer[0][0]["host"]) == ("1", "host2")  # the first to go
            drawn = draw(page, tmp_path)
            assert drawn.console == ()
            alerts = html.unescape(drawn.document.partition('<section id="alerts"')[2].partition("</section>")[0])
            assert "run: rank 1 on host2 does not answer" in alerts
            assert "<td>rank 1 on host2</td>" in alerts and "dmesg -T" in alerts
            picture(page, tmp_path, tmp_path / "lost.png", 1200)

            os.kill(supervised.process.pid, signal.SIGCONT)
            supervised.wait_for(lambda: f"{hosts.addresses[1]} does not answer: left out" in supervised.output)
            lost_at = supervised.step
            supervised.wait_for(lambda: supervised.step > lost_at)
            supervised.wait_for(lambda: [value for _, value in query(base, "spherescale_ranks")] == [1])
            supervised.wait_for(lambda: not query(base, GONE))
    finally:
        supervised.stop()
