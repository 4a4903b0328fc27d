"""The digest of the code."""

from __future__ import annotations

from pathlib import Path

from cluster.versions import ROOMS, code_digest


def test_any_change_of_code_changes_its_digest(tmp_path: Path) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
    file = tmp_path / "stages" / "train.py"
    file.write_text("a = 1\n")
    before = code_digest(tmp_path)
    assert code_digest(tmp_path) == before
    file.write_text("a = 2\n")
    assert code_digest(tmp_path) != before
