"""What must be the same on every host of a run: Python, the packages that compute, and this code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path

PACKAGES = ("spherescale", "torch", "deepspeed", "nvidia-dali-cuda130", "numpy")
ROOMS = ("pipeline", "cluster", "stages")
ROOT = Path(__file__).parents[1]


def how_to_install(extra: str) -> str:
    """The command that installs an extra of pyproject.toml, from this checkout: no registry has the project's name."""
    return f"pip install -e '{ROOT}[{extra}]'"


def versions() -> dict[str, str]:
    """Versions of Python and of each package; "not installed" for one that is missing."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def code_digest(root: Path = ROOT) -> str:
    """Twelve digits of the SHA-256 of every Python file of the project, in the order of their names."""
    code = hashlib.sha256()
    for room in ROOMS:
        for file in sorted((root / room).rglob("*.py")):
            code.update(file.read_bytes())
    return code.hexdigest()[:12]
