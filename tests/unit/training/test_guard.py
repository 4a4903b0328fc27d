"""When a loss is a spike, how often a run forgives, and what it leaves behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pipeline.recipe.schema import Faults
from pipeline.training.guard import Guard, NonFiniteError, dump


def test_a_spike_is_told_by_the_running_mean_once_it_is_known() -> None:
    guard = Guard(Faults(spike_factor=3.0), None)
    losses = [2.0 + 0.01 * (step % 7) for step in range(200)]
    mean = 0.0
    for seen, loss in enumerate(losses):
        wanted = 3.0 * mean if seen >= 50 else math.inf
        assert guard.threshold == pytest.approx(wanted, rel=1e-12)
        guard.good(loss)
        count = seen + 1
        # the plain mean of the first 50, from then on an exponential one over 50 steps
        mean = sum(losses[:count]) / count if count <= 50 else mean * 49 / 50 + loss / 50
    assert Guard(Faults(), None).threshold == math.inf


def test_bad_steps_are_forgiven_up_to_the_limit(tmp_path: Path) -> None:
    guard = Guard(Faults(action="skip", limit=2), tmp_path)
    guard.bad(1, "step 1: loss nan", {"loss": math.nan})
    guard.bad(2, "step 2: loss nan", {"loss": math.nan})
    with pytest.raises(
        NonFiniteError, match=r"step 3: loss nan: nothing .* steps is 3, faults.limit allows 2. A smaller"
    ):
        guard.bad(3, "step 3: loss nan", {"loss": math.nan})
    assert not guard.left_out and not guard.going_back
    assert [path.name for path in sorted((tmp_path / "faults").iterdir())] == [f"step-{n:08d}.json" for n in (1, 2, 3)]


def test_going_back_leaves_the_batches_before_out_too() -> None:
    guard = Guard(Faults(action="roll_back", leave_out=3), None)
    guard.bad(7, "step 7: loss nan", {})
    assert guard.left_out == {5, 6, 7} and guard.going_back


def test_rows_that_have_moved_are_gone_back_from_whatever_the_recipe_says(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(Faults(action="skip"), None)
    guard.bad(7, "step 7: not finite", {}, rows_moved=True)
    assert guard.left_out == {7} and guard.going_back
    assert "the rows had been updated" in caplog.text and "nothing of this step" not in caplog.text
    assert caplog.text.strip().endswith("; roll back")


def test_a_recipe_may_say_stop() -> None:
    with pytest.raises(NonFiniteError, match=r"step 1: loss nan: nothing of this step was applied\. A smaller"):
        Guard(Faults(action="stop"), None).bad(1, "step 1: loss nan", {})


def test_the_dump_is_json_that_everything_reads(tmp_path: Path) -> None:
    dump(tmp_path, 7, {"loss": math.nan, "norm": [1.5, math.inf], "samples": ["a"]})
    text = (tmp_path / "faults" / "step-00000007.json").read_text()
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict == {"loss": "nan", "norm": [1.5, "inf"], "samples": ["a"]}


def test_a_dump_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "faults").write_text("in the way")
    dump(tmp_path, 7, {"loss": 1.0})
    assert "the facts of the bad step are lost" in caplog.text
