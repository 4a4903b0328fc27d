"""The manifests: valid by the API's schemas, consistent, and their command line trains in two processes as in pods."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cluster.marks import START_VARIABLE
from cluster.stop import EXIT_LOST, EXIT_REFUSED, EXIT_STOPPED
from pipeline.recipe.file import load_recipe
from tests.end_to_end.launcher import metrics, train_alone, write_recipe
from tests.faces import ROOT, write_faces, write_shards
from tests.ports import free_port

FOLDER = ROOT / "cluster" / "launch" / "kubernetes"
PATIENCE_SECONDS = 300  # of a busy machine
ENDLESS = 10**6


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


SERVICE, JOB = documents("train.yaml")
(SHARD,) = documents("shard.yaml")
MONITOR, SHARD_MONITOR = documents("service_monitor.yaml")
POD = JOB["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
COMMAND: list[str] = CONTAINER["command"]


def option(name: str) -> str:
    return next(word.split("=", 1)[1] for word in COMMAND if word.startswith(f"--{name}="))


@pytest.mark.parametrize("version", ["1.31.0", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("document", [SERVICE, JOB, SHARD], ids=lambda d: d["metadata"]["name"])
def test_the_manifests_are_valid(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_see_a_misspelt_field() -> None:
    wrong = yaml.safe_load(yaml.safe_dump(JOB).replace("podFailurePolicy", "podFailPolicy"))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    ("monitor", "kind", "endpoints"),
    [(MONITOR, "ServiceMonitor", "endpoints"), (SHARD_MONITOR, "PodMonitor", "podMetricsEndpoints")],
    ids=["ranks", "parts"],
)
def test_the_monitors_have_the_fields_of_the_operator(monitor: dict[str, Any], kind: str, endpoints: str) -> None:
    """No package has their schemas: these are the fields and types of the operator's API reference."""
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", kind)
    assert monitor.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert monitor["spec"].keys() == {"selector", endpoints}
    assert monitor["spec"]["selector"].keys() == {"matchLabels"}
    for endpoint in monitor["spec"][endpoints]:
        assert endpoint.keys() == {"port", "interval", "honorLabels"}
        assert isinstance(endpoint["port"], str) and endpoint["honorLabels"] is True
        assert re.fullmatch(r"[0-9]+s", endpoint["interval"])


def test_pods_ranks_ports_and_names_agree() -> None:
    spec = JOB["spec"]
    assert spec["parallelism"] == spec["completions"] == int(option("hosts"))
    ranks = int(option("ranks"))
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == ranks
    recipe = load_recipe(ROOT / option("recipe"), ["data.shards=/shared/shards"])
    ports = {port["name"]: port["port"] for port in SERVICE["spec"]["ports"]}
    assert recipe.log.metrics_port is not None
    assert ports == {f"rank{rank}": recipe.log.metrics_port + rank for rank in range(ranks)}
    assert option("master-addr") == f"{JOB['metadata']['name']}-0.{SERVICE['metadata']['name']}"
    assert POD["subdomain"] == SERVICE["metadata"]["name"]
    assert SERVICE["spec"]["selector"].items() <= JOB["spec"]["template"]["metadata"]["labels"].items()
    assert MONITOR["spec"]["selector"]["matchLabels"].items() <= SERVICE["metadata"]["labels"].items()
    assert START_VARIABLE in {variable["name"] for variable in CONTAINER["env"]}
    assert [endpoint["port"] for endpoint in MONITOR["spec"]["endpoints"]] == list(ports)


def test_the_parts_of_a_set_are_as_many_as_the_pods_and_make_it(tmp_path: Path) -> None:
    template = SHARD["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert SHARD["spec"]["parallelism"] == SHARD["spec"]["completions"]
    assert f"--part=$(JOB_COMPLETION_INDEX)/{SHARD['spec']['completions']}" in container["command"]
    (port,) = container["ports"]
    assert f"--metrics-port={port['containerPort']}" in container["command"]
    assert [endpoint["port"] for endpoint in SHARD_MONITOR["spec"]["podMetricsEndpoints"]] == [port["name"]]
    assert SHARD_MONITOR["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()

    here = {"/shared/faces": write_faces(tmp_path / "faces", 3, 2), "/shared/shards": tmp_path / "shards"}
    alone = [(r"\$\(JOB_COMPLETION_INDEX\)/\d+", "0/1"), (r"port=\d+", "port=0"), ("0.0.0.0", "127.0.0.1")]
    words = [str(here.get(word, word)) for word in container["command"]]
    for pattern, replacement in alone:
        words = [re.sub(pattern, replacement, word) for word in words]
    subprocess.run([sys.executable, *words[1:]], cwd=ROOT, check=True)
    assert (tmp_path / "shards" / "manifest.json").is_file()


def test_the_failure_policy_knows_the_exit_codes() -> None:
    by_code = {}
    for rule in JOB["spec"]["podFailurePolicy"]["rules"]:
        for code in rule.get("onExitCodes", {}).get("values", []):
            by_code[code] = rule["action"]
    assert by_code == {2: "FailJob", EXIT_REFUSED: "FailJob", EXIT_STOPPED: "Ignore"}
    assert EXIT_LOST not in by_code, "a lost rank counts: a host that never joins must end the job at last"


@contextmanager
def pods(folder: Path, recipe: Path, shards: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The container's command in two processes, expanded as Kubernetes does, with one rank each and paths from here."""
    here = {
        "recipe": recipe,
        "run": folder / "run",
        "set=data.shards": shards,
        "ranks": 1,
        "master-addr": "127.0.0.1",
    }
    command = [
        next((f"--{name}={value}" for name, value in here.items() if word.startswith(f"--{name}=")), word)
        for word in COMMAND
    ]
    command.insert(command.index("stages/train.py"), f"--master-port={free_port()}")
    assert command[0] == "python"
    started = []
    for index in range(2):
        words = [re.sub(r"\$\(JOB_COMPLETION_INDEX\)", str(index), word) for word in command]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (folder / f"pod{index}").open("a") as output:
            started.append(
                subprocess.Popen(
                    [sys.executable, *words[1:]], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
                )
            )
    try:
        yield started
    finally:
        for _ in range(2):  # the second SIGTERM ends a rank at once
            for pod in started:
                pod.terminate()
            time.sleep(0.5)
        for pod in started:
            pod.wait()


def stop_hook(pod: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """The preStop hook, for a process that is not number 1 here."""
    command = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    here = [re.sub(r"\b1;", f"{pod.pid};", word).replace("--pid=1 ", f"--pid={pod.pid} ") for word in command]
    assert sum(str(pod.pid) in word for word in here) == 1 and here[-1].count(str(pod.pid)) == 2
    return subprocess.Popen(here)


def test_an_evicted_pod_stops_the_run_saved_and_the_run_resumes(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "set", identities=7, images=6)
    recipe, run = write_recipe(tmp_path / "recipe.yaml", shards, ENDLESS), tmp_path / "run"

    def output() -> str:
        return "\n".join(path.read_text() for path in sorted(tmp_path.glob("pod?")))

    def step() -> int:
        return int(max((row["step"] for row in metrics(run)), default=0))

    with pods(tmp_path, recipe, shards) as started:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while step() < 7:
            assert time.monotonic() < deadline and all(pod.poll() is None for pod in started), output()
            time.sleep(0.05)
        with stop_hook(started[1]) as hook:  # a node is drained
            assert [pod.wait(PATIENCE_SECONDS) for pod in started] == [EXIT_STOPPED] * 2, output()
        assert hook.returncode == 0, "it lasts until the pod has ended"
    last = step() + 10
    write_recipe(recipe, shards, last)
    with pods(tmp_path, recipe, shards) as started:
        assert [pod.wait(PATIENCE_SECONDS) for pod in started] == [0, 0], output()
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(1, last + 1)), "a step is missing, or was done twice"
    train_alone(tmp_path, "--recipe", recipe, "--run", "whole")
    assert [row["loss"] for row in rows] == pytest.approx(
        [row["loss"] for row in metrics(tmp_path / "whole")], rel=1e-4, abs=1e-4
    )


def test_the_dockerfile_copies_what_there_is_and_runs_what_the_shell_reads(tmp_path: Path) -> None:
    """No image is built: its instructions are read, and the syntax of its shell and its choice of torch are tested."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    instructions = [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]
    assert instructions[0][0] == "FROM"
    copied = [word for name, rest in instructions if name == "COPY" for word in rest.split()[:-1]]
    assert all((ROOT / word).exists() for word in copied)
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "pipeline", "cluster", "stages"} <= set(copied)
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\necho "$@"\n')
    pip.chmod(0o755)
    install = next(rest for name, rest in instructions if name == "RUN" and "pip install" in rest)
    for choice, calls in (("gpu", 1), ("cpu", 2)):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TORCH": choice}
        done = subprocess.run(
            ["sh", "-euc", install], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == calls
    assert re.search(r"whl/cpu torch==[\d.]+$", done.stdout.splitlines()[0])
