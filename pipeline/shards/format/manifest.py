"""The manifest: what a folder of shards holds, and how it was made.

`manifest.json` is written last and atomically, so a folder that has one is complete. It holds no time,
host name or absolute path: the same input gives the same bytes.
"""

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.files import write_file

FORMAT = 1
FILE_NAME = "manifest.json"

# Work in progress: the plan, and a record of each finished tar. It is removed after the manifest is written.
PROGRESS = ".progress"

# What a run that was killed leaves, begun files included.
TRACES = (PROGRESS, "faces-*.tar*", "faces-*.idx*", "identities.txt*", "index.npy*")


class ShardError(ValueError):
    """The run cannot continue. The message is one line for the user: what, the value got, the value wanted."""


@dataclass(frozen=True)
class TarEntry:
    """One tar of the set, in the order of the index; `name` is its path relative to the manifest."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Made:
    """How the set was made: enough to make it again, or to detect that an unfinished one has another input.

    `seed` is that of the shuffle, None for the order of the source. `source_sha256` is the digest of the listing
    (names and labels in order), not of the images.
    """

    source: str
    source_sha256: str
    seed: int | None
    samples_per_tar: int
    tool: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds; sizes in pixels, `samples` counted after files were set aside."""

    samples: int
    identities: int
    image_height: int
    image_width: int
    tars: tuple[TarEntry, ...]
    identities_sha256: str
    index_sha256: str
    set_aside: int
    made: Made
    format: int = FORMAT

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read and check `folder/manifest.json`.

        Raises:
            ShardError: it is missing, not ours, of another format version, or contradicts itself.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise ShardError(f"{path}: not found, wanted a finished shard folder ({_how_to_finish(folder)})")
        return cls.parse(path.read_bytes(), path)

    @classmethod
    def parse(cls, content: bytes, where: Path | str) -> "Manifest":
        """The manifest in a file's content; `where` names the file.

        Raises:
            ShardError: it is not ours, of another format version, or contradicts itself.
        """
        try:
            raw = json.loads(content)
        except ValueError as error:
            raise ShardError(f"{where}: not JSON ({error})") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            got = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise ShardError(f"{where}: format: got {got!r}, wanted {FORMAT}")
        try:
            tars = tuple(_record(TarEntry, tar) for tar in raw["tars"])
            manifest: Manifest = _record(cls, {**raw, "tars": tars, "made": _record(Made, raw["made"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"{where}: keys: {error}, wanted those of format {FORMAT}") from error
        in_tars = sum(tar.samples for tar in manifest.tars)
        if in_tars != manifest.samples:
            raise ShardError(f"{where}: samples: got {manifest.samples}, wanted {in_tars}, the sum over tars")
        return manifest

    def save(self, folder: Path) -> None:
        """Write `folder/manifest.json` atomically; call it after everything that it names is in place."""
        write_file(folder / FILE_NAME, self.content)

    @property
    def content(self) -> bytes:
        """What `manifest.json` holds."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: equal digests mean equal samples, labels and order."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """[tars + 1] index row at which each tar begins; the last entry is `samples`.

        The tar of row `i` is `np.searchsorted(first_rows, i, side="right") - 1`.
        """
        return np.cumsum([0, *(tar.samples for tar in self.tars)], dtype=np.int64)


def _how_to_finish(folder: Path) -> str:
    """What to do about a folder without a manifest: finish what was begun there, or make shards of what it holds."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if any(fnmatch(name, trace) for name in names for trace in TRACES):
        return "a killed run: run it again"
    source = shlex.quote(str(folder)) if names else "FACES"
    return f"to make one: python stages/shard.py {source} OUT, or make shards SRC={source} OUT=OUT"


def _record(kind: type[Any], raw: dict[str, Any]) -> Any:
    """Build a frozen dataclass whose scalar fields must have exactly the annotated type."""
    for field in fields(kind):
        if field.type in {int, str} and type(raw.get(field.name)) is not field.type:
            raise TypeError(f"{field.name}: got {raw.get(field.name)!r}, wanted {field.type.__name__}")
    return kind(**raw)
