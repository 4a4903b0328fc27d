"""The digest of the code, and the advice on what to install."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cluster.versions import ROOMS, ROOT, code_digest, how_to_install

TEXTS = [
    path
    for folder in (*ROOMS, "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".md", ".sh", ".yaml", ".sbatch"}
] + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "Dockerfile")]


def test_any_change_of_code_changes_its_digest(tmp_path: Path) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
    file = tmp_path / "stages" / "train.py"
    file.write_text("a = 1\n")
    before = code_digest(tmp_path)
    assert code_digest(tmp_path) == before
    file.write_text("a = 2\n")
    assert code_digest(tmp_path) != before


def extras() -> set[str]:
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))


def advised(text: str) -> list[str]:
    """The extras that a text tells its reader to install, in words or through `how_to_install`."""
    spelled = re.findall(r"pip install [^\n]*-e '\.\[([\w,]+)\]'", text)
    return [name for names in spelled for name in names.split(",")] + re.findall(r"how_to_install\(['\"](\w+)", text)


def test_every_extra_that_is_advised_exists() -> None:
    found = {path.relative_to(ROOT): advised(path.read_text()) for path in TEXTS}
    missing = {str(path): set(names) - extras() for path, names in found.items() if set(names) - extras()}
    assert not missing, f"got extras {missing}, wanted those of pyproject.toml: {extras()}"
    assert {"align", "demo", "export", "parquet"} <= {name for names in found.values() for name in names}


@pytest.mark.parametrize("extra", ["align", "demo", "export", "parquet"])
def test_the_advice_is_a_command_that_installs_this_checkout(extra: str) -> None:
    *command, target = shlex.split(how_to_install(extra))
    assert command == ["pip", "install", "-e"]
    folder, _, rest = target.partition("[")
    assert (Path(folder) / "pyproject.toml").is_file()
    assert rest == f"{extra}]" and extra in extras()


def test_no_advice_wants_the_project_from_a_registry() -> None:
    """No registry has the project's name: anyone could take it."""
    named = [path for path in TEXTS if re.search(r"pip install [^\n]*\bspherescale\b", path.read_text())]
    assert not named, f"got advice to install 'spherescale' in {named}, wanted the checkout: pip install -e '.[extra]'"
