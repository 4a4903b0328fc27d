"""A page drawn by a real Chromium: its document, console output and picture."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@dataclass(frozen=True)
class Drawn:
    """The document after its scripts ran, and what they wrote to the console."""

    document: str
    console: tuple[str, ...]


def draw(url: str, folder: Path, *, dark: bool = False) -> Drawn:
    """Load `url` and run its scripts for four seconds of virtual time, which pauses while the network is busy."""
    done = _chromium(url, folder, "--dump-dom", *(["--blink-settings=preferredColorScheme=0"] if dark else []))
    return Drawn(done.stdout, tuple(line for line in done.stderr.splitlines() if ":CONSOLE" in line))


def picture(url: str, folder: Path, file: Path, height: int, *, dark: bool = False) -> Path:
    """A picture of the page, 1500 wide."""
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    _chromium(url, folder, f"--screenshot={file}", f"--window-size=1500,{height}", *theme)
    return file


def _chromium(url: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--hide-scrollbars", f"--user-data-dir={folder / 'chromium'}", "--virtual-time-budget=4000"]
    command += ["--enable-logging=stderr", *arguments, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done
