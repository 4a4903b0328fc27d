"""What a release says of itself agrees everywhere: versions, pins, the image's user, the workflow, Slurm's script."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.faces import ROOT


def pinned(package: str) -> str:
    """Major and minor version in constraints.txt."""
    found = re.search(rf"^{re.escape(package)}==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


def test_one_version_everywhere() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version and newest and version[1] == newest[1] == citation["version"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_table_of_gpus_is_that_of_the_pins() -> None:
    text = (ROOT / "docs" / "requirements.md").read_text()
    assert f"PyTorch {pinned('torch')} with CUDA 13.0, DALI {pinned('nvidia-dali-cuda130')} for CUDA 13.0" in text


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert [step["run"] for step in workflow["jobs"]["run"]["steps"] if "run" in step][-1] == ".ci/run"


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users and users[-1].split(":")[0] not in {"0", "root"}


@pytest.mark.parametrize(
    ("variables", "container"),
    [
        ({}, []),
        ({"CONTAINER": "/s/a b.sqsh"}, ["--container-image=/s/a b.sqsh", "--container-workdir=/opt/spherescale"]),
        (
            {"CONTAINER": "docker://x", "MOUNTS": "/s:/s,/d:/d"},
            ["--container-image=docker://x", "--container-workdir=/opt/spherescale", "--container-mounts=/s:/s,/d:/d"],
        ),
    ],
    ids=["none", "image", "mounts"],
)
def test_slurm_starts_the_ranks_in_a_container_if_one_is_named(
    tmp_path: Path, variables: dict[str, str], container: list[str]
) -> None:
    """With stand-ins for srun and scontrol: pyxis is no package that could be installed here."""
    for name, text in (("srun", f'printf "%s\\n" "$@" >{tmp_path}/given\n'), ("scontrol", "echo h0\n")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text}")
        program.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "h0", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_CPUS_PER_TASK": "1", **slurm, **variables}
    command: list[str | Path] = [
        "bash",
        ROOT / "cluster/launch/slurm/train.sbatch",
        tmp_path / "run",
        "--recipe",
        "a recipe",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    given = (tmp_path / "given").read_text().splitlines()
    assert [word for word in given if word.startswith("--container")] == container
    python = "python" if container else ".venv/bin/python"
    assert given[-6:] == [python, "stages/train.py", "--run", f"{tmp_path}/run", "--recipe", "a recipe"]
