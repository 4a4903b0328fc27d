"""Disks that take nothing: a limit on a file's size, which stops a write in its middle, and small file systems."""

from __future__ import annotations

import errno
import io
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest


class FullLog(io.StringIO):
    """A log on a full disk."""

    def write(self, text: str) -> int:  # noqa: ARG002 - a stream's
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """In this process, files take `size` bytes meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory, at `path`."""

    path: Path

    def remount(self, options: str) -> None:
        """Change it: `ro`, `rw`, `size=40m`."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)

    def fill(self, left: int) -> None:
        """Take all but so many bytes of it, in a file `filler`, instead of what that took before."""
        filler = self.path / "filler"
        filler.unlink(missing_ok=True)
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        os.truncate(filler, max(0, filler.stat().st_size - left))

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.path / "filler").unlink()


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[SmallDisk]:
    """Mount one at a folder, which is made; a test that may not mount is skipped."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"may not mount: {mounted.stderr.decode().strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)
