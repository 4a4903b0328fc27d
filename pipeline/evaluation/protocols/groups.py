"""A file of groups: which skin tone, age or camera each image is of, for error rates by group.

A tab-separated file with the header ``path  group``: a path is an image below the image folder, or the folder of a
person, whose images are then all of that group.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.evaluation.protocols.lines import read_lines
from pipeline.evaluation.scoring.verification import IntArray
from pipeline.files import file_sha256

COLUMNS = ("path", "group")
NO_GROUP = -1


@dataclass(frozen=True)
class Groups:
    """The group of each path, and the digest of the file that says so."""

    of: Mapping[str, str]
    sha256: str

    @property
    def names(self) -> list[str]:
        """The groups, sorted."""
        return sorted(set(self.of.values()))

    def numbers(self, images: Sequence[str]) -> IntArray:
        """The position `[N]` in `names` of each image's group, by its path or its folder's, else `NO_GROUP`."""
        place = {name: number for number, name in enumerate(self.names)}
        found = []
        for image in images:
            group = self.of.get(image, self.of.get(PurePosixPath(image).parent.as_posix()))
            found.append(NO_GROUP if group is None else place[group])
        return np.array(found, np.int64)


def read_groups(file: Path, images: Sequence[str]) -> Groups:
    """Read a file of groups for `images`; raises ValueError naming the line, or if no image has a group."""
    reader = csv.DictReader(read_lines(file), delimiter="\t", quoting=csv.QUOTE_NONE)
    if any(name not in (reader.fieldnames or []) for name in COLUMNS):
        raise ValueError(f"{file}: got columns {reader.fieldnames}, wanted {' and '.join(COLUMNS)} (tab-separated)")
    of: dict[str, str] = {}
    for line in reader:
        path, group = (line[name] for name in COLUMNS)
        if not path or not group:
            raise ValueError(f"{file}, line {reader.line_num}: got path {path!r} and group {group!r}, wanted both")
        path = path.rstrip("/")  # a shell's `ls -d */` ends folders so
        if of.setdefault(path, group) != group:
            raise ValueError(f"{file}, line {reader.line_num}: got {path} as {group} and as {of[path]}, wanted one")
    groups = Groups(of, file_sha256(file))
    if (groups.numbers(images) == NO_GROUP).all():
        raise ValueError(f"{file}: got {len(of)} paths, none of an image of the pairs such as {images[0]}")
    return groups
