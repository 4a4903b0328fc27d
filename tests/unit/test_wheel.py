"""The wheel: what a user of another project finds in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "cluster", "stages")
BUILD = "from setuptools.build_meta import build_wheel; print(build_wheel('out'))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Built once, of a copy: a build leaves folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ZipFile(folder / "out" / done.stdout.splitlines()[-1])


def metadata(wheel: ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    return message_from_bytes(wheel.read(name))


def test_every_file_of_the_rooms_but_notes_is_in_it(wheel: ZipFile) -> None:
    """Types, alerts, dashboards, pages, recipes, files for launchers."""
    there = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()}
    wanted = {name for name in there if "__pycache__" not in name and name != "stages/RESULTS.md"}
    assert {"pipeline/py.typed", "cluster/py.typed", "cluster/monitoring/alerts.yml"} <= wanted
    assert wanted <= set(wheel.namelist())


def test_the_runbooks_are_those_of_the_documentation(wheel: ZipFile) -> None:
    assert wheel.read("cluster/monitoring/runbooks.md") == (ROOT / "docs/runbooks.md").read_bytes()


def test_it_says_what_it_is_and_needs(wheel: ZipFile) -> None:
    about = metadata(wheel)
    classifiers = about.get_all("Classifier") or []
    assert "Typing :: Typed" in classifiers
    assert any(classifier.endswith("3.10") for classifier in classifiers)
    assert (about["Requires-Python"], about["License-Expression"]) == (">=3.10", "Apache-2.0")
    assert about.get_all("Project-URL")
    needed = [line for line in about.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert not [line for line in needed if line.startswith("webdataset")], "only tests and benchmarks import it"
    assert any(line.startswith("lightning>=") for line in about.get_all("Requires-Dist") or [])
