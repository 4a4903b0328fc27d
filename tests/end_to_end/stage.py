"""Runs a stage in the test's own process, which is spared importing torch once more."""

import runpy
import sys
from pathlib import Path

import pytest

STAGES = Path(__file__).parents[2] / "stages"


def run_stage(name: str, *arguments: object) -> int:
    """The stage as if it were started with these arguments; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(STAGES / name), run_name="__main__")
    return int(ended.value.code or 0)
