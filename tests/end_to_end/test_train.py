"""Training as a user starts it: launcher, kill, resume, signals, metrics, faulty input."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cluster.stop import EXIT_REFUSED, EXIT_STOPPED
from pipeline.run.checkpoint import BACKBONE, complete_steps
from pipeline.run.folder import RunFolder
from tests.end_to_end.cut_for_one import REASON
from tests.end_to_end.launcher import (
    DEEPSPEED,
    PATIENCE_SECONDS,
    TRAIN,
    metrics,
    run_python,
    start_training,
    train,
    wait_for,
    write_recipe,
)
from tests.faces import ROOT, write_shards
from tests.fault_table import Row, record
from tests.ports import free_port
from tests.unit.run.saved import spoil
from tests.warm_stage import run_warm

STEPS = 14


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("set"), identities=7, images=6)


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_recipe(folder / "recipe.yaml", shards, STEPS)
    train(folder, 2, "--recipe", recipe, "--run", "run")
    return folder / "run"


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start_training` whose processes do not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def remember(*arguments: Any) -> subprocess.Popen[str]:
        started.append(start_training(*arguments))
        return started[-1]

    yield remember
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


def test_a_run_leaves_what_repeats_it(uninterrupted: Path) -> None:
    assert complete_steps(uninterrupted) == [0, 5, 10, STEPS]
    rows = metrics(uninterrupted)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["loss"] < rows[0]["loss"]
    facts = json.loads((uninterrupted / "run.json").read_text())
    assert facts["ranks"] == 2
    assert facts["command"].startswith("deepspeed --num_gpus 2 ")
    assert "local_rank" not in facts["command"]
    assert yaml.safe_load((uninterrupted / "recipe.yaml").read_text())["head"]["margin"]["lambda_max"] == 1500.0
    parts = rows[-1]["step_part_seconds"]
    assert {"data_wait", "forward", "backward", "head", "communication", "update"} <= set(parts)
    assert sum(parts.values()) <= rows[-1]["step_seconds"] * 1.01


def test_killed_in_mid_epoch_and_resumed_it_gives_the_same_losses_bit_for_bit(
    shards: Path, start: Start, uninterrupted: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, STEPS)
    run = tmp_path / "run"
    # So that it cannot end well before it is killed, however late this process gets to that: a file, where the last
    # save wants a folder.
    obstacle = RunFolder(run).partial(STEPS)
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()
    process = start(tmp_path, 2, "--recipe", recipe, "--run", "run", "--resume", "auto")
    wait_for(lambda: len(metrics(run)) >= 7 and complete_steps(run)[-1] >= 5, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert complete_steps(run)[-1] in {5, 10}
    obstacle.unlink()
    train(tmp_path, 2, "--recipe", recipe, "--run", "run", "--resume", "auto")
    got = [(row["step"], row["loss"]) for row in metrics(tmp_path / "run")]
    assert got == [(row["step"], row["loss"]) for row in metrics(uninterrupted)]


def resume_under(launcher: str, ranks: int, run: Path, *arguments: str | Path) -> str:
    """Train in a run's folder, to the end, under another launcher than deepspeed; what it printed.

    torchrun loses its second rank, if there is one, and starts again.
    """
    port = free_port()
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", ranks, "--master_port", port, "--max_restarts", 1]
    command = {
        "torchrun": [*torchrun, Path(__file__).with_name("killed_once.py"), "--run-folder"],
        "supervise.py": [TRAIN.with_name("supervise.py"), "--ranks", ranks, "--master-port", port, "--", "--run"],
    }[launcher]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": f"{DEEPSPEED.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(part) for part in (sys.executable, *command, run, *arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


@pytest.mark.parametrize("launcher", ["torchrun", "supervise.py"])
def test_another_launcher_passes_over_what_is_damaged_and_resumes_bit_for_bit(
    shards: Path, uninterrupted: Path, tmp_path: Path, launcher: str
) -> None:
    run = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    shutil.rmtree(RunFolder(run).checkpoint(STEPS))
    spoil(RunFolder(run).checkpoint(10) / BACKBONE)
    output = resume_under(launcher, 2, run, "--recipe", write_recipe(tmp_path / "recipe.yaml", shards, STEPS))
    assert "passed over for the one before" in output and f"resumed {run} at step 5" in output
    assert output.count(f"resumed {run} at step") == (2 if launcher == "torchrun" else 1)
    want = [(row["step"], row["loss"]) for row in metrics(uninterrupted)]
    assert [(row["step"], row["loss"]) for row in metrics(run)] == want


def test_another_launcher_takes_the_same_step_on_other_ranks(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    shutil.rmtree(RunFolder(run).checkpoint(STEPS))
    output = resume_under("torchrun", 1, run, "--recipe", write_recipe(tmp_path / "recipe.yaml", shards, 12))
    assert f"resumed {run} at step 10" in output and "ranks: 2 → 1" in output
    losses, wanted = ([row["loss"] for row in metrics(folder)[10:12]] for folder in (run, uninterrupted))
    assert losses[0] == pytest.approx(wanted[0], rel=1e-6)
    assert losses[1] == pytest.approx(wanted[1], rel=1e-5), "the update of the step was another"


def test_a_finished_run_is_not_trained_again(shards: Path, uninterrupted: Path) -> None:
    recipe = write_recipe(uninterrupted.parent / "recipe.yaml", shards, STEPS)
    before = (uninterrupted / "metrics.jsonl").stat().st_mtime_ns
    done = run_warm(TRAIN, "--recipe", recipe, "--run", "run", folder=uninterrupted.parent)
    assert (done.returncode, done.stdout) == (0, "")
    assert "is finished: 14 steps; nothing to do" in done.stderr
    assert (uninterrupted / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_folder_has_one_trainer_also_if_its_launcher_is_gone(shards: Path, start: Start, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, 100_000)
    first = start(tmp_path, 1, "--recipe", recipe, "--run", "run", "--set", "checkpoint.every=1000")
    wait_for(lambda: len(metrics(tmp_path / "run")) >= 3, first)
    (rank,) = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and is_rank(p, str(tmp_path))]
    os.kill(rank, signal.SIGSTOP)  # it would see that its launcher is gone, save and end
    first.kill()
    second = run_warm(TRAIN, "--recipe", recipe, "--run", "run", folder=tmp_path)
    assert second.returncode == EXIT_REFUSED, second.stderr
    (line,) = [line for line in second.stderr.splitlines() if "held by" in line]
    assert line.startswith(f"train.py: run: held by pid {rank} on ") and "wanted one trainer in a folder" in line
    os.kill(rank, signal.SIGCONT)
    first.communicate(timeout=PATIENCE_SECONDS)
    assert complete_steps(tmp_path / "run")[-1] == metrics(tmp_path / "run")[-1]["step"] > 0


@pytest.mark.parametrize(
    ("who", "number", "code"),
    [
        ("one rank", signal.SIGTERM, EXIT_STOPPED),
        # deepspeed's own command does not wait for the ranks, nor for their exit code; they save all the same
        ("every process, as by Ctrl-C", signal.SIGINT, -signal.SIGINT),
        ("the command alone", signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_every_rank_is_scraped_until_a_signal_stops_all_after_a_saved_step(
    shards: Path, start: Start, tmp_path: Path, who: str, number: signal.Signals, code: int
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, 100_000, port=0)
    process = start(tmp_path, 2, "--recipe", recipe, "--run", "run", "--set", "checkpoint.every=1000")
    wait_for(lambda: len(metrics(tmp_path / "run")) >= 6, process)
    assert_every_rank_is_scraped(tmp_path / "run")
    ranks = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and is_rank(p, str(tmp_path))]
    assert len(ranks) == 2
    at = time.monotonic()
    if who.startswith("every"):
        os.killpg(process.pid, number)
    else:
        os.kill(ranks[0] if who == "one rank" else process.pid, number)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code, output
    saved = complete_steps(tmp_path / "run")[-1]
    assert saved == metrics(tmp_path / "run")[-1]["step"] > 0
    reasons = re.findall(rf"stopped by (.*) after step {saved}, saved; the same command resumes it", output)
    assert len(reasons) == 2 and "" not in reasons, output
    deadline = time.monotonic() + PATIENCE_SECONDS  # their output is closed a moment before they are gone
    while left := [rank for rank in ranks if Path(f"/proc/{rank}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
    outcome = f"step finished and saved by all ranks, the command's exit code {code if code > 0 else 128 - code}"
    done = f"{number.name} to {who} (2 ranks, no supervisor)"
    record(Row(f"Bare deepspeed stopped: {who}", done, 0, time.monotonic() - at, None, outcome))


def is_rank(process: Path, folder: str) -> bool:
    """Whether a folder of /proc is a training process of the run in `folder`, not its launcher."""
    try:
        arguments = (process / "cmdline").read_bytes().decode().split("\0")
    except OSError:
        return False
    return any(a.startswith("--local_rank=") for a in arguments) and any(folder in a for a in arguments)


def scrape(target: Path) -> dict[str, float]:
    address = json.loads(target.read_text())[0]["targets"][0]
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=60).read().decode()
    return {
        sample.name + "".join(f" {v}" for k, v in sample.labels.items() if k == "part"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def assert_every_rank_is_scraped(run: Path) -> None:
    targets = sorted((run / "targets").glob("*.json"))
    assert [t.stem for t in targets] == ["run-0", "run-1"]
    for values in map(scrape, targets):
        assert values["spherescale_step"] >= 5
        assert values["spherescale_ranks"] == 2
        assert 0 < values["spherescale_loss"] < 10
        assert values["spherescale_margin_lambda"] > 5
        assert values["spherescale_learning_rate"] > 0
        assert values["spherescale_samples_total"] > 0
        assert values["spherescale_checkpoint_age_seconds"] < 600
        assert values["spherescale_resident_memory_bytes"] > 1e6
        for part in ("forward", "backward", "head", "communication", "update"):
            assert values[f"spherescale_step_part_seconds_total {part}"] > 0


def test_a_taken_port_is_told_and_the_run_goes_on_without_torchs_compiler(shards: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        recipe = write_recipe(tmp_path / "recipe.yaml", shards, 2, port=port)
        tell = {"PYTHONPROFILEIMPORTTIME": "1"}
        output = train(tmp_path, 1, "--recipe", recipe, "--run", "run", environment=tell)
    # It takes seconds to import, and torch does so at an optimizer's first call.
    assert "pipeline.training.loop\n" in output and "torch._dynamo\n" not in output
    assert f"127.0.0.1 port {port} is in use; serving on port " in output
    assert complete_steps(tmp_path / "run")[-1] == 2


def fail(*arguments: str | Path, run: Callable[..., subprocess.CompletedProcess[str]] = run_warm) -> str:
    """A start of one rank that must be refused: its own exit code, one line a fault, no traceback."""
    done = run(TRAIN, *arguments)
    assert done.returncode == EXIT_REFUSED, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("train.py: ")
    return done.stderr


def test_faulty_starts_are_refused_in_one_line(shards: Path, uninterrupted: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, STEPS)
    run = tmp_path / "run"
    assert "optimizer.stepz: unknown key; did you mean steps?" in fail(
        "--recipe", recipe, "--run", run, "--set", "optimizer.stepz=3", run=run_python
    )
    assert "data.global_batch: got 1000, wanted at most the 42 samples" in fail(
        "--recipe", recipe, "--run", run, "--set", "data.global_batch=1000"
    )
    assert "manifest.json: not found" in fail("--recipe", recipe, "--run", run, "--set", f"data.shards={tmp_path}")
    assert "holds checkpoints up to step 14; wanted an empty folder" in fail(
        "--recipe", recipe, "--run", uninterrupted, "--resume", "never"
    )
    assert not run.exists(), "a refused start left something behind"


def test_what_one_rank_alone_finds_wrong_is_said(shards: Path, tmp_path: Path) -> None:
    place = ["--host", 0, "--hosts", 1, "--ranks", 2, "--master-addr", "127.0.0.1", "--master-port", free_port()]
    recipe = write_recipe(tmp_path / "recipe.yaml", shards, 100)
    command = [sys.executable, "-m", "cluster.start_ranks", *place, Path(__file__).with_name("cut_for_one.py")]
    done = subprocess.run(
        [str(part) for part in (*command, "--recipe", recipe, "--run", tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == EXIT_REFUSED
    assert done.stderr.splitlines().count(f"train.py: {REASON}") == 1, done.stderr
    assert "silent: rank 1 on " in done.stderr


def test_shards_of_other_people_do_not_fit_the_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    other = write_shards(tmp_path, identities=8, images=6)
    recipe = write_recipe(tmp_path / "recipe.yaml", other, STEPS + 1)
    assert "num_classes: got 8, wanted 7 as saved: other shards; start another run" in fail(
        "--recipe", recipe, "--run", uninterrupted
    )


def test_help_teaches() -> None:
    for options, words in (
        (["--help"], ("--hostfile", "--resume", "code 75")),
        (["--help-recipe"], ("head.margin.lambda_gamma", "  seed (")),
        (["--help-recipe", "head"], ("head.margin.lambda_gamma", "default")),
    ):
        done = subprocess.run([sys.executable, TRAIN, *options], capture_output=True, text=True, check=True)
        assert all(word in done.stdout for word in words)
