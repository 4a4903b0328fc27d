"""Trackers get a run's numbers: TensorBoard by its own reader, W&B and MLflow at the edge of their interfaces."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.sinks import SINKS, Sink, Tracked

VALUES = {"spherescale_loss": 1.5, "spherescale_target_angle_radians/p50": 0.25}


def sink_of(keys: Mapping[str, Any]) -> Sink:
    return SINKS.parse(dict(keys))


def tracked(folder: Path, step: int = 0) -> Tracked:
    return Tracked("casia20", step, {"seed": 0, "head.margin.name": "arcface"}, folder)


def use(keys: Mapping[str, Any], folder: Path, step: int, report: Path) -> None:
    """Open, write two steps and a file, close."""
    writer = sink_of(keys).open(tracked(folder, step))
    for done in (step + 1, step + 2):
        writer.scalars(done, {name: value + done for name, value in VALUES.items()})
    writer.file(report)
    writer.close(True)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    file = tmp_path / "report.html"
    file.write_text("<p>")
    return file


def test_tensorboard_has_every_step_once(tmp_path: Path, report: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    use({"name": "tensorboard"}, tmp_path / "events", 0, report)
    use({"name": "tensorboard"}, tmp_path / "events", 1, report)  # killed after step 2, resumed from the save of step 1
    found = reader.EventAccumulator(str(tmp_path / "events")).Reload()
    assert set(found.Tags()["scalars"]) == set(VALUES)
    for name, value in VALUES.items():
        assert [(event.step, event.value) for event in found.Scalars(name)] == [(n, value + n) for n in (1, 2, 3)]
    texts = {tag: found.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    assert "head.margin.name: arcface" in texts["recipe/text_summary"]
    assert str(report) in texts["report.html/text_summary"]


class Wandb:
    """What the sink uses of the package `wandb`."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.files: list[str] = []
        self.codes: list[int] = []
        self.settings: dict[str, Any] = {}

    def Settings(self, **settings: Any) -> dict[str, Any]:
        self.settings = settings
        return settings

    def init(self, **keys: Any) -> Wandb:
        self.started.append(keys)
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, data: dict[str, float]) -> None:
        self.logged.append(data)

    def Artifact(self, name: str, type: str) -> SimpleNamespace:  # noqa: A002 - its name there
        assert (name, type) == ("casia20-report", "report")
        return SimpleNamespace(add_file=self.files.append)

    def log_artifact(self, artifact: SimpleNamespace) -> None:
        assert artifact.add_file == self.files.append

    def finish(self, *, exit_code: int) -> None:
        self.codes.append(exit_code)


def test_wandb_continues_one_run(tmp_path: Path, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    keys = {"name": "wandb", "project": "faces", "entity": "team", "mode": "offline"}
    for step in (0, 2):
        use(keys, tmp_path / "wandb", step, report)
    first, second = fake.started
    assert first == second  # the id among the rest
    assert {key: first[key] for key in ("project", "entity", "name", "resume", "mode")} == {
        **{"project": "faces", "entity": "team", "name": "casia20", "resume": "allow", "mode": "offline"}
    }
    assert first["config"] == {"seed": 0, "head.margin.name": "arcface"}
    assert fake.settings == {"console": "off", "silent": True}
    assert [row["step"] for row in fake.logged] == [1, 2, 3, 4]
    assert fake.logged[0] == {"step": 1} | {name: value + 1 for name, value in VALUES.items()}
    assert fake.files == [str(report)] * 2
    assert fake.codes == [0, 0]


class Mlflow:
    """What the sink uses of the package `mlflow`, and of `mlflow.entities`."""

    def __init__(self) -> None:
        self.uris: list[str | None] = []
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, str] = {}
        self.metrics: list[tuple[str, str, float, int]] = []
        self.params: dict[str, str] = {}
        self.files: list[str] = []

    def MlflowClient(self, tracking_uri: str | None) -> Mlflow:
        self.uris.append(tracking_uri)
        return self

    def Metric(self, key: str, value: float, timestamp: int, step: int) -> tuple[str, float, int, int]:
        return key, value, timestamp, step

    def Param(self, key: str, value: str) -> tuple[str, str]:
        return key, value

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        found = self.experiments.get(name)
        return found and SimpleNamespace(experiment_id=found)  # type: ignore[return-value]

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = "7"
        return "7"

    def create_run(self, experiment_id: str, *, run_name: str) -> SimpleNamespace:
        self.runs[f"{run_name} of {experiment_id}"] = "RUNNING"
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{run_name} of {experiment_id}"))

    def update_run(self, run_id: str, *, status: str) -> None:
        self.runs[run_id] = status

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.metrics += [(run_id, key, value, step) for key, value, _, step in metrics]
        self.params |= dict(params)

    def log_artifact(self, run_id: str, path: str) -> None:
        self.files.append(f"{run_id}: {path}")

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id] = status


def test_mlflow_continues_one_run(tmp_path: Path, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", fake)
    keys = {"name": "mlflow", "tracking_uri": "http://tracker", "experiment": "faces"}
    for step in (0, 2):
        use(keys, tmp_path / "mlflow", step, report)
    run = "casia20 of 7"
    assert fake.uris == ["http://tracker"] * 2
    assert fake.runs == {run: "FINISHED"}
    assert fake.params == {"seed": "0", "head.margin.name": "arcface"}
    wanted = [(run, name, value + step, step) for step in (1, 2, 3, 4) for name, value in VALUES.items()]
    assert fake.metrics == wanted
    assert fake.files == [f"{run}: {report}"] * 2
    writer = sink_of(keys).open(tracked(tmp_path / "mlflow", 4))
    writer.close(False)
    assert fake.runs == {run: "FAILED"}
