"""MLflow: a run at a tracking server, continued at every start."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.files import make_folder, write_file
from pipeline.sinks.sink import SINKS, Sink, Tracked

# What a server takes at a time, and of a value.
PARAMS_AT_ONCE, VALUE_LENGTH = 100, 500


@SINKS.add("mlflow")
class MLflow(Sink):
    """A run at an MLflow server, or in a folder or database that MLflow keeps."""

    name: str = "mlflow"
    tracking_uri: str | None = None
    """Where the server is; null: as MLFLOW_TRACKING_URI says."""
    experiment: str = "spherescale"
    """Experiment that the run belongs to; it is made if need be."""

    def open(self, run: Tracked) -> MLflowRun:
        """See `Sink.open`."""
        from mlflow import MlflowClient  # noqa: PLC0415 - an extra
        from mlflow.entities import Metric, Param  # noqa: PLC0415

        client = MlflowClient(self.tracking_uri)
        make_folder(run.folder)
        file = run.folder / "id"
        if file.is_file():
            run_id = file.read_text()
            client.update_run(run_id, status="RUNNING")
        else:
            found = client.get_experiment_by_name(self.experiment)
            experiment = client.create_experiment(self.experiment) if found is None else found.experiment_id
            run_id = client.create_run(experiment, run_name=run.name).info.run_id
            write_file(file, run_id.encode())
            params = [Param(key, str(value)[:VALUE_LENGTH]) for key, value in run.keys.items()]
            for start in range(0, len(params), PARAMS_AT_ONCE):
                client.log_batch(run_id, params=params[start : start + PARAMS_AT_ONCE])
        return MLflowRun(client, run_id, Metric)


class MLflowRun:
    """Writes to a run of MLflow."""

    def __init__(self, client: Any, run_id: str, metric: Any) -> None:
        self._client, self._run_id, self._metric = client, run_id, metric

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Writer.scalars`."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, metrics=[self._metric(name, v, now, step) for name, v in values.items()])

    def file(self, path: Path) -> None:
        """See `Writer.file`."""
        self._client.log_artifact(self._run_id, str(path))

    def close(self, finished: bool) -> None:
        """See `Writer.close`."""
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "FAILED")
