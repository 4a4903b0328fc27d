"""`stages/align.py` as users run it: crops out of photographs, and shards out of the crops."""

import subprocess
import sys
from pathlib import Path

from cluster.stop import EXIT_REFUSED
from tests.detector import needs_detector

STAGES = Path(__file__).parents[2] / "stages"


def run(stage: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(STAGES / stage), *map(str, words)], capture_output=True, text=True, cwd="/", check=False
    )


def test_an_error_is_one_line_and_exit_code_65(tmp_path: Path) -> None:
    done = run("align.py", tmp_path / "nowhere", tmp_path / "out")
    assert done.returncode == EXIT_REFUSED
    assert done.stderr.startswith(
        f"align: {tmp_path}/nowhere: not found, wanted identity folders, a list file, or a fold"
    )
    assert done.stderr.count("\n") == 1


@needs_detector
def test_photographs_become_shards_by_two_commands(tmp_path: Path) -> None:
    assert run("demo_faces.py", tmp_path / "faces").returncode == 0
    done = run("align.py", tmp_path / "faces" / "test", tmp_path / "crops", "--size", "112x112")
    assert (done.returncode, done.stderr) == (0, "")
    aligned = int(done.stdout.removeprefix(f"{tmp_path}/crops: ").split(" aligned")[0])
    assert aligned > 90  # these pictures end at the hair, which the detector does not always forgive
    done = run("align.py", tmp_path / "faces" / "test", tmp_path / "crops", "--size", "112x112")
    assert (done.returncode, done.stderr) == (0, f"align: {tmp_path}/crops: already complete, nothing done\n")
    done = run("shard.py", tmp_path / "crops.csv", tmp_path / "set")
    assert f"{aligned} samples of 10 identities, 112x112, in 1 tar (" in done.stdout
    assert "0 files set aside" in done.stdout
