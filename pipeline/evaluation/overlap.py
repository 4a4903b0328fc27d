"""People who are in the training and in the test set: candidates by similarity, and what somebody decided of each."""

from __future__ import annotations

from pathlib import Path


def excluded_people(file: Path) -> frozenset[str]:
    """Test people whom a decision file says are training people as well."""
    lines = (line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:])
    return frozenset(line[1] for line in lines if line[3] == "same")
