"""A tracker is fed beside training: what fails there, or takes for ever, is a warning, and the run goes on."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.recipe.file import recipe_of
from pipeline.recipe.schema import Recipe, RecipeError
from pipeline.run.folder import RunFolder
from pipeline.sinks import SINKS, Sink, Tracked, Writer
from pipeline.training.observers.observer import Observers
from pipeline.training.observers.tracker import WAITING, Tracker
from tests.records import evaluated, record, window_of

# What the toys got, and what a hanging one waits for.
HEARD: list[str] = []
GO = threading.Event()


@SINKS.add("toy_sink")
class Toy(Sink):
    """Writes down what it gets; breaks or waits if it is told to."""

    name: str = "toy_sink"
    breaks: str = ""
    """Name of the method that raises."""

    def open(self, run: Tracked) -> Writer:
        self.check("open")
        if self.breaks == "package":
            raise ModuleNotFoundError("No module named 'toy'", name="toy")
        HEARD.append(f"open {run.name} at {run.step}, seed {run.keys['seed']}")
        if self.breaks == "hangs":
            GO.wait()
        return self

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.check("scalars")
        HEARD.append(f"{step} {json.dumps(values)}")

    def file(self, path: Path) -> None:
        HEARD.append(f"file {path.name}")

    def close(self, finished: bool) -> None:
        HEARD.append(f"close {finished}")

    def check(self, method: str) -> None:
        if method == self.breaks:
            raise ConnectionError("the server is gone\nand this is its page")


def recipe(steps: int = 3) -> Recipe:
    return recipe_of(
        {
            "data": {"shards": "shards", "global_batch": 4},
            "backbone": "sphereface4",
            "optimizer": {"steps": steps, "learning_rate": 0.1},
        }
    )


def track(sink: Toy, run: Path, steps: int = 3, patience: float = 60) -> list[str]:
    """Three steps, the second with a number that is not finite, and an evaluation."""
    HEARD.clear()
    hub = Observers([Tracker(sink, run, recipe(steps), (patience, patience))], log_every=1)
    with hub.watching(0):
        for step in range(1, 4):
            one = record(step, measured={"gradient_norm": float("nan") if step == 2 else 2.0}, parts={"head": 0.5})
            hub.recorded(one, window_of(one))
        hub.evaluated(evaluated(3))
    return HEARD


def test_it_gets_each_number_under_prometheus_name(tmp_path: Path) -> None:
    opened, *rows, evaluation, closed = track(Toy(), tmp_path / "casia")
    assert (opened, closed) == ("open casia at 0, seed 0", "close True")
    steps = [json.loads(row.partition(" ")[2]) for row in rows]
    assert [row.partition(" ")[0] for row in rows] == ["1", "2", "3"]
    assert steps[1]["spherescale_loss"] == 0.5
    # a counter of labels, since the process began; and a mean over the log's window
    assert steps[2]["spherescale_step_part_seconds_total/head"] == 1.5
    assert steps[2]["spherescale_step_part_seconds/head"] == 0.5
    assert ["spherescale_gradient_norm" in step for step in steps] == [True, False, True]
    assert json.loads(evaluation.partition(" ")[2])["spherescale_evaluation_accuracy_ratio/lfw"] > 0.5


@pytest.mark.parametrize(
    ("breaks", "warning"),
    [
        ("open", "log.sinks: toy_sink: the server is gone; training continues without it"),
        ("scalars", "log.sinks: toy_sink: the server is gone; training continues"),
        ("package", "log.sinks: toy_sink: No module named 'toy', wanted: pip install -e '"),
    ],
)
def test_a_tracker_that_fails_is_a_warning_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, breaks: str, warning: str
) -> None:
    with caplog.at_level(logging.WARNING):
        heard = track(Toy(breaks=breaks), tmp_path)
    (line,) = (entry.getMessage() for entry in caplog.records)
    assert line.startswith(warning)
    assert heard == ([f"open {tmp_path.name} at 0, seed 0", "close True"] if breaks == "scalars" else [])


def test_a_tracker_that_hangs_holds_up_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = Toy(breaks="hangs")
    with caplog.at_level(logging.WARNING):
        hub = Observers([Tracker(sink, tmp_path, recipe(), (0.01, 0.01))], log_every=1)
        with hub.watching(0):
            for step in range(1, WAITING + 3):
                hub.recorded(record(step), window_of(record(step)))
    messages = [entry.getMessage() for entry in caplog.records]
    assert any(f"logged: {WAITING} rows behind; rows are lost; training continues" in text for text in messages)
    assert len(messages) == 2  # that, and the end
    GO.set()


def test_the_report_of_a_finished_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    (folder.evaluations / "lfw").mkdir(parents=True)
    (folder.evaluations / "lfw" / "step-00000003.json").write_text("{}")
    monkeypatch.setattr("pipeline.evaluation.reports.report.write_report", lambda _, out: out)
    assert "file report.html" in track(Toy(), tmp_path)
    assert "file report.html" not in track(Toy(), tmp_path, steps=9)  # stopped before its last step


def test_each_tracker_is_named_once() -> None:
    tree = recipe().model_dump(mode="json")
    for sinks, message in (
        (["toy_sink", "toy_sink"], "log.sinks: got toy_sink, toy_sink, wanted each tracker once"),
        (["tensorbord"], "got 'tensorbord', wanted one of mlflow, tensorboard, "),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe_of(tree | {"log": {"sinks": sinks}})
