"""The batch files on a real Slurm: two nodes train, are preempted, and resume with an uninterrupted run's losses."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cluster.ranks.topology import Topology
from pipeline.shards.format.manifest import Manifest
from tests.end_to_end.launcher import metrics, train_alone, write_recipe
from tests.end_to_end.slurm import Slurm, why_not
from tests.faces import ROOT, write_faces, write_shards

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

TRAIN, SHARD = (ROOT / "cluster" / "launch" / "slurm" / f"{name}.sbatch" for name in ("train", "shard"))
ON_TWO_CPUS = ("--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
ENDLESS = 10**6  # steps; the recipe gets its real number of steps after the interruptions


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    # a short path: a step's socket is inside, and a socket's path has at most 108 letters
    with TemporaryDirectory(prefix="slurm", dir="/tmp") as folder, Slurm(Path(folder)) as made:
        yield made


def submit(slurm: Slurm, folder: Path, script: Path, *arguments: str | Path, python: str = sys.executable) -> str:
    output = f"--output={folder}/job.out"
    return slurm.submit(*ON_TWO_CPUS, output, script, *arguments, cwd=ROOT, PYTHON=python, OMP_NUM_THREADS="1")


def test_a_run_near_its_limit_and_then_preempted_has_the_losses_of_an_unharmed_one(
    slurm: Slurm, tmp_path: Path
) -> None:
    shards = write_shards(tmp_path / "set", identities=7, images=6)
    recipe, run = write_recipe(tmp_path / "recipe.yaml", shards, ENDLESS), tmp_path / "run"
    job = submit(slurm, tmp_path, TRAIN, run, "--recipe", recipe)

    def output() -> str:
        logs = sorted((run / "logs").glob("*"))
        return "\n".join(path.read_text() for path in (tmp_path / "job.out", *logs) if path.exists())

    def step() -> int:
        return int(max((row["step"] for row in metrics(run)), default=0))

    # what `--signal` does ahead of the time limit, at a time of our choice
    slurm.wait_for(lambda: step() >= 7, output)
    slurm.ask("scancel", "--signal=USR1", job)
    slurm.wait_for(lambda: "start 0: exit code 75" in output(), output)
    stopped_at = step()
    slurm.wait_for(lambda: slurm.facts(job)["Restarts"] == "1" and step() > stopped_at, output)

    # a job of higher priority takes both nodes, and frees them once the recipe has its real number of steps
    urgent, ended = tmp_path / "urgent", tmp_path / "ended"
    urgent.write_text(f"#!/bin/bash\nwhile [ ! -e {ended} ]; do sleep 0.1; done\n")
    other = slurm.submit("-p", "high", "--nodes=2", "--exclusive", "--output=/dev/null", urgent, cwd=tmp_path)
    slurm.wait_for(lambda: slurm.facts(other)["JobState"] == "RUNNING", output)
    last = step() + 20
    write_recipe(recipe, shards, last)
    ended.touch()
    slurm.wait_for(lambda: slurm.facts(job)["JobState"] in ("COMPLETED", "FAILED"), output)

    assert slurm.facts(job)["JobState"] == "COMPLETED", output()
    assert "stopped by SIGTERM after step" in output() and "stopped by SIGUSR1 after step" in output()
    assert "start 1: exit code 75: asked to stop, saved; queued again" in output()
    assert "start 2: trained to the end" in output()
    assert {path.name for path in (run / "logs").iterdir()} == {
        f"{job}-start{start}-rank{rank}.log" for start in range(3) for rank in range(2)
    }
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(1, last + 1)), "a step is missing, or was done twice"
    train_alone(tmp_path, "--recipe", recipe, "--run", "whole")
    assert [row["loss"] for row in rows] == pytest.approx(
        [row["loss"] for row in metrics(tmp_path / "whole")], rel=1e-4, abs=1e-4
    )


@pytest.mark.parametrize(
    ("codes", "starts", "message"),
    [
        ([65], 1, "start 0: exit code 65: refused"),
        ([75, 75, 75, 0], 4, "start 3: trained to the end"),
        ([69, 69, 69], 3, "start 2: exit code 69: failed 3 times in a row at the start: given up"),
    ],
    ids=["refused", "stopped three times, then finished", "lost three times"],
)
def test_what_is_queued_again(slurm: Slurm, tmp_path: Path, codes: list[int], starts: int, message: str) -> None:
    """With a stand-in for Python that ends with these codes on rank 0, and with 0 on rank 1."""
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/bash\necho rank $RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_SIZE at $MASTER_ADDR:$MASTER_PORT "
        f"hosts $SPHERESCALE_HOSTS, $SPHERESCALE_START start $SPHERESCALE_ATTEMPT: $@\n"
        f"codes=({' '.join(map(str, codes))})\n"
        "[ $RANK = 1 ] || exit ${codes[${SLURM_RESTART_COUNT:-0}]}\n"
    )
    python.chmod(0o755)
    run, output = tmp_path / "run", tmp_path / "job.out"
    job = submit(slurm, tmp_path, TRAIN, run, "--recipe", "a recipe", python=str(python))
    slurm.wait_for(lambda: slurm.facts(job)["JobState"] in ("COMPLETED", "FAILED"))
    assert message in output.read_text()
    assert slurm.facts(job)["Restarts"] == str(starts - 1)
    for start in range(starts):
        assert re.fullmatch(
            rf"rank 1 of 2, 0 of 1 at 127.0.0.1:2\d{{4}} hosts 127.0.0.1,127.0.0.2, Slurm {job} start {start}: "
            rf"stages/train.py --run {run} --recipe a recipe\n",
            (run / "logs" / f"{job}-start{start}-rank1.log").read_text(),
        )


def test_a_job_that_is_not_to_queue_again_stops_for_good(slurm: Slurm, tmp_path: Path) -> None:
    """With a stand-in for Python that ends with 75 on SIGUSR1, as after a save."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/bash\ntrap 'exit 75' USR1\ntouch {tmp_path}/up$RANK\nwhile :; do sleep 0.1; done\n")
    python.chmod(0o755)
    job = submit(slurm, tmp_path, TRAIN, tmp_path / "run", "--recipe", "a recipe", python=str(python))
    slurm.wait_for(lambda: all((tmp_path / f"up{rank}").exists() for rank in range(2)))
    slurm.ask("scontrol", "update", f"JobId={job}", "Requeue=0")
    slurm.ask("scancel", "--signal=USR1", job)
    slurm.wait_for(lambda: slurm.facts(job)["JobState"] == "FAILED")
    assert slurm.facts(job)["Restarts"] == "0" and slurm.facts(job)["ExitCode"] == "75:0"
    assert "start 0: not queued again" in (tmp_path / "job.out").read_text()


def test_srun_says_which_rank_a_process_is_and_a_batch_script_that_it_is_alone(slurm: Slurm, tmp_path: Path) -> None:
    program = tmp_path / "place.py"
    program.write_text(
        "import os\nfrom cluster.ranks.topology import Topology\nprint(Topology.from_environment(os.environ))\n"
    )
    script = tmp_path / "job.sh"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --nodes=2\nexport PYTHONPATH={ROOT}\n$PYTHON {program}\nsrun --label $PYTHON {program}\n"
    )
    job = submit(slurm, tmp_path, script)
    slurm.wait_for(lambda: slurm.facts(job)["JobState"] in ("COMPLETED", "FAILED"))
    alone, *places = (tmp_path / "job.out").read_text().splitlines()
    assert alone == str(Topology())
    assert sorted(places) == [f"{rank}: {Topology(rank, 2, 0, 1)}" for rank in range(2)]


def test_an_array_of_parts_makes_the_set(slurm: Slurm, tmp_path: Path) -> None:
    faces, shards = write_faces(tmp_path / "faces", identities=7, images=6), tmp_path / "shards"
    job = submit(slurm, tmp_path, SHARD, faces, shards, "--samples-per-tar", "5")
    slurm.wait_for((shards / "manifest.json").exists)
    slurm.wait_for(lambda: not slurm.ask("squeue", "-h", "-j", job).strip(), (tmp_path / "job.out").read_text)
    assert Manifest.load(shards).samples == 42
