"""How a run is doing, from its folder alone: state, pace, results; and the table that shows it."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.lease import Holder, leased
from cluster.stop import EXIT_REFUSED
from pipeline.run.best import Best, write_best
from pipeline.run.folder import RunFolder
from pipeline.run.status import runs_in, status_of
from stages import status as stage
from tests.unit.run.saved import save_steps

RECIPE = "optimizer: {steps: 28000}\ndata: {global_batch: 512}\n"
ROWS: list[dict[str, Any]] = [
    {"step": 100, "time": 1.0, "loss": 9.5, "global_samples_per_second": 900.0},
    {"step": 100, "time": 2.0, "evaluation": {"lfw": {"accuracy": 0.75}, "cfp": {"accuracy": 0.5}}},
    {"step": 120, "time": 3.0, "loss": 8.25, "global_samples_per_second": 1024.0},
]


def make_run(run: Path, *saved: int, rows: list[dict[str, Any]] = ROWS) -> Path:
    """A run's folder with these checkpoints."""
    run.mkdir(parents=True)
    folder = RunFolder(run)
    folder.recipe.write_text(RECIPE)
    folder.facts.write_text("{}")
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1')
    folder.history.write_text('{"step": 0}\n{"step": 100}\n')
    folder.goodput.write_text('{"goodput_ratio": 0.875}')
    save_steps(run, *saved)
    return run


def left_behind(run: Path, holder: Holder) -> Path:
    """The claim of a process that did not take it back."""
    RunFolder(run).claims.mkdir()
    file = RunFolder(run).claims / "00000001.json"
    file.write_text(json.dumps(asdict(holder)))
    return file


def test_one_that_trains_has_a_pace_and_an_end(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 100)
    write_best(run, Best(100, "lfw", 0.75))
    with leased(RunFolder(run).claims, Holder("train me"), print):
        status = status_of(run)
    assert (status.state, status.step, status.steps, status.saved, status.starts) == ("training", 120, 28000, 100, 2)
    assert status.holder and status.holder.command == "train me"
    assert status.left_seconds == (28000 - 120) * 512 / 1024
    assert (status.time, status.record["loss"], status.goodput_ratio) == (3.0, 8.25, 0.875)
    assert status.evaluation == {"lfw": 0.75, "cfp": 0.5}
    assert status.best == Best(100, "lfw", 0.75)


def test_one_that_gave_its_folder_back_has_stopped_or_finished(tmp_path: Path) -> None:
    stopped, finished = (status_of(make_run(tmp_path / str(step), step)) for step in (100, 28000))
    assert (stopped.state, stopped.step, stopped.holder, stopped.left_seconds) == ("stopped", 120, None, None)
    assert (finished.state, finished.step) == ("finished", 28000)


def test_one_that_left_its_claim_was_killed_unless_the_claim_is_kept_fresh_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 100)
    gone = Holder("train me", started=1)  # its pid is this process's, which began later
    file = left_behind(run, gone)
    assert (status_of(run).state, status_of(run).holder) == ("killed", gone)
    file.write_text(json.dumps(asdict(far := replace(gone, host="far", machine="another"))))
    began = time.monotonic()
    status = status_of(run, beat_seconds=0.05)
    assert (status.state, status.holder) == ("killed", far)
    assert 0.2 < time.monotonic() - began, "not before it has missed some beats"


def test_what_is_not_there_yet_or_is_damaged_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", rows=[])
    for file in (RunFolder(run).goodput, RunFolder(run).best):
        file.write_text("{")
    RunFolder(run).history.unlink()
    status = status_of(run)
    assert (status.state, status.step, status.saved, status.time, status.starts) == ("stopped", 0, None, None, 0)
    assert (status.evaluation, status.best, status.goodput_ratio) == ({}, None, None)


@pytest.mark.parametrize("content", ["", "- 1", "optimizer: {steps: many}", "optimizer: {steps: 3}", "{"])
def test_a_recipe_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    RunFolder(tmp_path).recipe.write_text(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}/recipe\.yaml: got .*, wanted the recipe of a"):
        status_of(tmp_path)


def test_runs_are_found_below_a_folder_and_none_within_a_run(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "study" / name) for name in ("b/seed1", "a/seed1", "a/seed2")]
    make_run(runs[0] / "left" / "1")
    (tmp_path / "study" / "recipe.yaml").write_text(RECIPE)
    assert runs_in(tmp_path) == sorted(runs)
    assert runs_in(runs[0]) == [runs[0]]
    assert runs_in(tmp_path / "nothing") == []


def test_the_table_has_a_line_for_each_run_and_no_empty_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done, killed = make_run(Path("runs/done"), 28000), make_run(Path("runs/killed"), 100, rows=ROWS[:1])
    left_behind(killed, Holder("deepspeed train.py", started=1))
    monkeypatch.setattr(sys, "argv", ["status.py", "runs"])
    monkeypatch.setattr(time, "time", lambda: 3725.0)
    assert stage.main() == 0
    head, first, second, why = capsys.readouterr().out.splitlines()
    names = "run, state, step, images/s, loss, accuracy, saved, logged, starts, goodput"
    assert ", ".join(re.split("  +", head)) == names
    expected = (
        f"{done} | finished | 28,000/28,000 | 1,024 | 8.2500 | lfw 75.00% cfp 50.00% | 28,000 | 1:02:02 ago | 2 | 88%"
    )
    assert " | ".join(re.split("  +", first)) == expected
    expected = f"{killed} | killed | 100/28,000 | 900 | 9.5000 | 100 | 1:02:04 ago | 2 | 88%"
    assert " | ".join(re.split("  +", second)) == expected
    assert head.index("logged") == first.index("1:02:02") == second.index("1:02:04")
    assert why.startswith(f"{killed}: killed: pid ") and why.endswith(" (deepspeed train.py)")


def test_a_run_that_cannot_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        make_run(tmp_path / name, 100)
    RunFolder(tmp_path / "b").recipe.write_text("{")
    monkeypatch.setattr(sys, "argv", ["status.py", str(tmp_path), str(tmp_path / "none")])
    assert stage.main() == EXIT_REFUSED
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["run", str(tmp_path / "a"), str(tmp_path / "c")]
    assert said.err.splitlines() == [
        f"status: {tmp_path}/b/recipe.yaml: got KeyError('optimizer.steps'), wanted the recipe of a run",
        f"status: {tmp_path}/none: got no folder, wanted runs",
    ]
