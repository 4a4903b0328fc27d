"""The command line of the preflight checks: the files that it reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.preflight.__main__ import CHECKPOINTS, parse, read_plan
from cluster.supervision.hosts import read_hostfile
from pipeline.recipe.schema import Checkpoint
from pipeline.run.checkpoint import complete_steps
from tests.unit.run.saved import save_steps
from tests.warm_stage import run_warm


def test_the_examples_are_what_deepspeed_reads() -> None:
    """Its environment file knows no comment and no empty line; its hostfile is ours."""
    launch = Path(__file__).parents[4] / "cluster" / "launch"
    assert read_hostfile(launch / "hostfile.example") == {"node1": 8, "node2": 8}
    lines = (launch / "deepspeed_env.example").read_text().splitlines()
    assert lines and all(re.fullmatch(r"[A-Z_]+=\S+", line) for line in lines)


def test_a_plan_as_the_planner_prints_it_is_read(tmp_path: Path) -> None:
    stage, file = Path(__file__).parents[4] / "stages" / "plan.py", tmp_path / "plan.json"
    file.write_text(run_warm(stage, "--identities", "5000", "--ranks", "4", "--json").stdout)
    plan = read_plan(file, ranks=4)
    assert plan.ranks == 4 and plan.gradient_bytes > 4 * 10**6
    assert plan.checkpoint_bytes == 2 * 4 * 5000 * 512 + 2 * plan.gradient_bytes
    with pytest.raises(ValueError, match="got a plan for 4 ranks, wanted the 8 slots of the hostfile"):
        read_plan(file, ranks=8)
    file.write_text("{}")
    with pytest.raises(ValueError, match="wanted the output of stages/plan"):
        read_plan(file, ranks=4)


def test_the_room_that_is_wanted_is_that_of_a_run_which_saves(tmp_path: Path) -> None:
    save_steps(tmp_path, *range(6), keep=Checkpoint().keep)
    assert CHECKPOINTS == len(complete_steps(tmp_path)) + 1, "an older one goes when the new one is there"


def test_folders_are_looked_for_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["preflight", "--hostfile", "hosts", "--run", "runs/night"])
    args = parse()
    assert (args.run, args.shards) == (tmp_path / "runs/night", None)
