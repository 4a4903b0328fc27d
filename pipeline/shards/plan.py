"""What will be written, decided before anything is: all that the bytes of a set of shards depend on."""

import contextlib
import json
import shutil
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files import locked, named, write_file
from pipeline.shards.errors import SetAsideError, ShardError
from pipeline.shards.images import read_header
from pipeline.shards.manifest import FILE_NAME as MANIFEST
from pipeline.shards.manifest import FORMAT, Made, Manifest
from pipeline.shards.shuffle import cut, permutation
from pipeline.shards.sources import Source
from pipeline.shards.tars import BLOCK

# Work in progress: the plan, and a record of each finished tar. It goes when the manifest comes.
PROGRESS = ".progress"


@dataclass(frozen=True)
class Plan:
    """Which samples go to which tar, in which order: `order[bounds[t]:bounds[t + 1]]` are those of tar `t`."""

    source: Source
    folder: Path
    made: Made
    image_height: int
    image_width: int
    order: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @property
    def tars(self) -> int:
        """How many tars there will be."""
        return len(self.bounds) - 1

    def tar_name(self, tar: int) -> str:
        """File name of a tar without its suffix."""
        return f"faces-{tar:06d}"

    def facts(self) -> dict[str, object]:
        """What must be equal for two runs to write the same bytes."""
        made = {name: value for name, value in asdict(self.made).items() if name != "tool"}
        return {**made, "image_height": self.image_height, "image_width": self.image_width, "format": FORMAT}


def make_plan(
    source: Source, folder: Path, *, seed: int | None, samples_per_tar: int, size: tuple[int, int] | None
) -> Plan:
    """Plan the shards of `source` in `folder`.

    Args:
        source: where the faces are.
        folder: where the shards go.
        seed: of the shuffle over the whole set; None leaves the samples in the order of the source.
        samples_per_tar: the most that a tar holds; the tars are of nearly equal size.
        size: (height, width) in pixels of every image; that of the first readable one when None.

    Raises:
        ShardError: a number out of range, or no image of the source is readable.
    """
    if samples_per_tar < 1:
        raise ShardError(f"samples per tar: got {samples_per_tar}, wanted at least 1")
    height, width = size or _first_size(source)
    made = Made(source.kind, source.digest(), seed, samples_per_tar, tool_version())
    samples = len(source.labels)
    order = np.arange(samples) if seed is None else permutation(samples, seed)
    return Plan(source, folder, made, height, width, order, cut(samples, samples_per_tar))


def samples_in(source: Source, tar_bytes: int) -> int:
    """How many samples of the source make a tar of about so many bytes, by the mean of a thousand of them."""
    sizes = []
    for sample in range(0, len(source.labels), max(1, len(source.labels) // 1000)):
        with contextlib.suppress(SetAsideError):
            sizes.append(len(source.read(sample)))
    # Three headers, padded label and key, and half a block of padding behind the image.
    mean = sum(sizes) / max(1, len(sizes)) + 5.5 * BLOCK
    return max(1, round(tar_bytes / mean))


def tool_version() -> str:
    """Name and version of this software, as the manifest keeps it."""
    return f"spherescale {version('spherescale')}"


def claim_folder(plan: Plan) -> Manifest | None:
    """Make the plan's folder ready to write in, or return the manifest when the shards are there already.

    Raises:
        ShardError: the folder holds something else, or (part of) the shards of another plan.
    """
    folder, progress = plan.folder, plan.folder / PROGRESS
    if (folder / MANIFEST).is_file():
        manifest = Manifest.load(folder)
        refuse_other_plan(plan, manifest, folder)
        # A run killed between its last two steps has a manifest and its records still.
        shutil.rmtree(progress, ignore_errors=True)
        return manifest
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not progress.is_dir())):
        raise ShardError(f"{folder}: is not empty and holds no shards, wanted a new or an empty folder")
    with named(folder, "not made"):
        progress.mkdir(parents=True, exist_ok=True)
    with locked(progress / "lock"):  # several machines may begin at once
        if (progress / "plan.json").is_file():
            refuse_other(folder, json.loads((progress / "plan.json").read_bytes()), plan.facts())
        else:
            write_file(progress / "plan.json", json.dumps(plan.facts(), indent=1).encode())
    return None


def refuse_other_plan(plan: Plan, manifest: Manifest, where: Path | str) -> None:
    """Make sure that a finished set is the plan's.

    Raises:
        ShardError: it is another's; names what differs.
    """
    size = replace(plan, image_height=manifest.image_height, image_width=manifest.image_width)
    refuse_other(where, replace(size, made=manifest.made).facts(), plan.facts())


def refuse_other(folder: Path | str, there: dict[str, object], wanted: dict[str, object]) -> None:
    """Make sure that the facts of shards that are there are those of a plan.

    Raises:
        ShardError: they are not; names every one that differs.
    """
    names = [name for name in wanted if there.get(name) != wanted[name]]
    if names:
        differences = ", ".join(f"{name}: got {there.get(name)}, wanted {wanted[name]}" for name in names)
        raise ShardError(f"{folder}: holds other shards ({differences}); choose another folder or remove it")


def _first_size(source: Source) -> tuple[int, int]:
    """(height, width) of the first readable image of the listing."""
    reason = ""
    for sample in range(len(source.labels)):
        try:
            return read_header(source.read(sample))[1:]
        except SetAsideError as error:
            reason = reason or f"{source.key(sample)}: {error}"
    raise ShardError(f"no readable image in {len(source.labels)} files; the first: {reason}")
