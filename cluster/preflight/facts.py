"""The facts of one host, as a line of JSON: run on each by ssh, ``python -m cluster.preflight.facts``."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import socket
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.versions import code_digest, versions


@dataclass(frozen=True)
class Facts:
    """The facts of one host.

    Attributes:
        versions: of Python and packages, and the digest of the code.
        gpus: name and driver of each.
        shards: digest of the manifest, number and bytes of the tars; None if not asked for.
        free_bytes: on the disk of the run's folder; None if not asked for.
        port_is_free: whether the ranks' store could listen there.
    """

    versions: dict[str, str]
    gpus: list[str]
    shards: str | None
    free_bytes: int | None
    port_is_free: bool


def gather(shards: Path | None, run: Path | None, port: int) -> Facts:
    """All facts of this host."""
    return Facts(
        versions() | {"code": code_digest()},
        gpus(),
        describe_shards(shards) if shards else None,
        free_bytes(run) if run else None,
        is_free(port),
    )


def gpus() -> list[str]:
    """``name, driver`` of each GPU that the driver shows; empty without a driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return list(filter(None, map(str.strip, answer.splitlines())))


def describe_shards(folder: Path) -> str:
    """One line that differs if the shards differ; the tars' bytes are not read."""
    try:
        manifest = (folder / "manifest.json").read_bytes()
    except OSError as error:
        return f"no manifest ({error.strerror})"
    sizes = [tar.stat().st_size for tar in folder.glob("*.tar")]
    return f"manifest {hashlib.sha256(manifest).hexdigest()[:12]}, {len(sizes):,} tars of {sum(sizes):,} bytes"


def free_bytes(folder: Path) -> int:
    """On the disk of a folder, which need not exist yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def is_free(port: int) -> bool:
    """Whether no process listens on the port, on any address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def main() -> None:
    """Print this host's facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    print(json.dumps(asdict(gather(args.shards, args.run, args.port))))


if __name__ == "__main__":
    main()
