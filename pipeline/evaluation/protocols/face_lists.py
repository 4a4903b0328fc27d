"""Images of people to be searched, from a folder and, if there is one, a list: whose face each of them shows.

A list names images below the folder. It may be

- text: ``path``, or ``path<TAB>person``, a line (MegaFace's ``facescrub_lst`` of InsightFace, and lists of one's own);
- JSON: ``{"path": [...], "id": [...]}`` (``facescrub_features_list.json``, ``megaface_features_list.json_1000000_1``;
  Kemelmacher-Shlizerman et al., "The MegaFace Benchmark", CVPR 2016);
- MATLAB: ``probe_set`` and ``probe_ids``, or others that end so (``probe_img_ID_pairs.mat`` of TinyFace; Cheng, Zhu,
  Gong, "Low-Resolution Face Recognition", ACCV 2018).

A person whom no list names is the folder of the image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.versions import how_to_install
from pipeline.evaluation.protocols.lines import read_lines
from pipeline.evaluation.protocols.pairs import list_images
from pipeline.evaluation.protocols.pairs_file import identity_of
from pipeline.evaluation.scoring.verification import BoolArray

NOBODY = "."  # the folder of an image that lies in none below its root
LOOKED_AT = 100  # images of a list that are looked for, to find out a wrong folder


@dataclass(frozen=True)
class Faces:
    """`N` images below a folder, and who is on each."""

    folder: Path
    paths: tuple[str, ...]
    people: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def digest(self) -> str:
        """Of images and people; equal digests mean equal lists."""
        lines = [f"{path}\t{person}" for path, person in zip(self.paths, self.people, strict=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def among(self, wanted: BoolArray) -> Faces:
        """The images that are `wanted` `[N]`."""
        kept = np.flatnonzero(wanted)
        return Faces(self.folder, tuple(self.paths[i] for i in kept), tuple(self.people[i] for i in kept))

    def require_people(self, option: str) -> None:
        """Raise ValueError, naming `option`, for images that show nobody's face: in no folder, and of no list."""
        nobody = [path for path, person in zip(self.paths, self.people, strict=True) if person == NOBODY]
        if nobody:
            raise ValueError(
                f"{option}: got {len(nobody):,} of {len(self):,} images without a person, such as {nobody[0]} in"
                f" {self.folder}, wanted a folder for each person, or a list that names them"
            )


def read_faces(folder: Path, listing: Path | None = None) -> Faces:
    """The images of `listing` below `folder`, or all that are there.

    Raises ValueError for a folder without images, and for a list that is faulty or of another folder.
    """
    if listing is None:
        paths = list_images(folder)
        return Faces(folder, tuple(paths), tuple(map(identity_of, paths)))
    paths, people = _read_list(listing)
    if not paths:
        raise ValueError(f"{listing}: got no images, wanted some")
    if not any((folder / path).is_file() for path in paths[:LOOKED_AT]):
        raise ValueError(f"{listing}: names {paths[0]} and {len(paths) - 1:,} more, wanted images below {folder}")
    return Faces(folder, tuple(paths), tuple(people or map(identity_of, paths)))


def read_noise(files: Sequence[Path]) -> frozenset[str]:
    """The images that noise lists name, as ``facescrub_noises.txt`` and ``megaface_noises.txt`` do.

    One a line: a file's name, or the end of its path; lines that begin with # are none. Of lines with a tab it is the
    second field.
    """
    noise = set()
    for file in files:
        for line in read_lines(file):
            if line.strip() and not line.startswith("#"):
                fields = line.strip().split("\t")
                noise.add(fields[min(1, len(fields) - 1)])
    return frozenset(noise)


def is_noise(paths: Iterable[str], noise: frozenset[str]) -> BoolArray:
    """Which of the images are named in `noise`: by their paths, or by how these end."""
    return np.array([not noise.isdisjoint(_ends(path)) for path in paths], bool)


def in_both(one: Faces, other: Faces) -> list[str]:
    """The people who are in both lists, by their names."""
    return sorted((set(one.people) & set(other.people)) - {NOBODY})


def _ends(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _read_list(file: Path) -> tuple[list[str], list[str] | None]:
    """The paths of a list, and the people if it names them."""
    try:
        with file.open("rb") as stream:
            start = stream.read(16).lstrip()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    if start.startswith(b"{"):
        return _read_json(file)
    return _read_matlab(file) if file.suffix == ".mat" else _read_text(file)


def _read_text(file: Path) -> tuple[list[str], list[str] | None]:
    rows = [line.split("\t") for line in read_lines(file) if line.strip()]
    named = len(rows[0]) > 1 if rows else False
    for row in rows:
        if len(row) != 1 + named or not all(row):
            raise ValueError(f"{file}: got {row}, wanted {'path, tab, person' if named else 'a path'} in each line")
    return [row[0] for row in rows], [row[1] for row in rows] if named else None


def _read_json(file: Path) -> tuple[list[str], list[str] | None]:
    try:
        content = json.loads("\n".join(read_lines(file)))
        paths, people = list(map(str, content["path"])), content.get("id")
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f'{file}: {error!r}, wanted {{"path": [...], "id": [...]}}') from None
    if people is not None and len(people) != len(paths):
        raise ValueError(f"{file}: got {len(people)} ids for {len(paths)} paths, wanted one for each")
    return paths, list(map(str, people)) if people is not None else None


def _read_matlab(file: Path) -> tuple[list[str], list[str] | None]:
    try:
        from scipy.io import loadmat  # noqa: PLC0415 - the extra may be missing
    except ModuleNotFoundError as error:
        raise ValueError(f"{file}: {error}, wanted: {how_to_install('matlab')}") from None
    try:
        content = loadmat(file, squeeze_me=True)
        paths, people = _ending(content, "_set"), _ending(content, "_ids")
    except Exception as error:  # of SciPy's reader, for whatever is wrong with the file
        raise ValueError(f"{file}: not a MATLAB list of images: {str(error).splitlines()[0]}") from None
    if len(paths) != len(people):
        raise ValueError(f"{file}: got {len(people)} ids for {len(paths)} names, wanted one for each")
    return paths, people


def _ending(content: dict[str, Any], end: str) -> list[str]:
    """The entries of the only variable whose name ends so."""
    (values,) = [np.atleast_1d(value) for name, value in content.items() if name.endswith(end)]
    return [str(np.asarray(value).item()) for value in values]
