"""IJB-B and IJB-C: templates of several images and video frames, verified 1:1 and searched 1:N.

Whitelam et al., "IARPA Janus Benchmark-B", CVPRW 2017; Maze et al., "IARPA Janus Benchmark C", ICB 2018. Files are
those that InsightFace distributes for both sets, in one folder:

- ``ijbc_face_tid_mid.txt``: image, template, medium.
- ``ijbc_template_pair_label.txt``: template, template, 1 or 0.
- ``ijbc_name_5pts_score.txt``: image, five points (x and y each), the detector's score.
- ``ijbc_1N_gallery_G1.csv``, ``..._G2.csv`` (S1 and S2 of IJB-B) and ``..._probe_mixed.csv``, with columns by name.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.protocols.lines import read_lines
from pipeline.evaluation.scoring.verification import BoolArray, FloatArray, IntArray
from pipeline.files import file_sha256

GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}
COLUMNS = ("TEMPLATE_ID", "SUBJECT_ID")
POINTS = 10  # five points, x and y


class Media(NamedTuple):
    """For each of `M` mentions of an image: its name, its template and its medium (a photograph or a video)."""

    names: NDArray[np.str_]
    template: IntArray
    medium: IntArray


class Subjects(NamedTuple):
    """Distinct templates `[T]` of a 1:N list, rising, and the subject of each."""

    template: IntArray
    subject: IntArray


@dataclass(frozen=True)
class Detections:
    """What a detector found on each of `N` images: five points `[N, 5, 2]` (x and y in pixels) and its score `[N]`."""

    source: str
    place: Mapping[str, int]
    points: FloatArray
    scores: FloatArray

    def of(self, names: NDArray[np.str_]) -> Detections:
        """Those of some images, in order; raises ValueError naming the first that has none."""
        absent = [name for name in names if name not in self.place]
        if absent:
            raise ValueError(
                f"{self.source}: got no line of {absent[0]} and {len(absent) - 1} more, wanted one for each"
            )
        rows = np.array([self.place[name] for name in names])
        place = {str(name): i for i, name in enumerate(names)}
        return Detections(self.source, place, self.points[rows], self.scores[rows])


@dataclass(frozen=True)
class Protocol:
    """All that a set's files say.

    Attributes:
        media: the images of the templates.
        pairs: two template ids each, and whether they show one subject.
        detections: None if there is no such file.
        galleries, probes: of 1:N; none if a file is missing.
        missing: what was not found, and what that costs: a line each.
        digest: of pairs, templates and 1:N lists; equal digests mean equal comparisons.
    """

    media: Media
    pairs: tuple[IntArray, IntArray, BoolArray]
    detections: Detections | None
    galleries: Mapping[str, Subjects]
    probes: Subjects | None
    missing: tuple[str, ...]
    digest: str

    @property
    def subject_of(self) -> dict[int, int]:
        """The subject of each template that a 1:N list names."""
        lists = [*self.galleries.values(), *([self.probes] if self.probes else [])]
        found: dict[int, int] = {}
        for one in lists:
            found |= zip(one.template.tolist(), one.subject.tolist(), strict=True)
        return found


def read_protocol(meta: Path, name: str) -> Protocol:
    """The files of the set `name`, a key of `GALLERIES`, in the folder `meta`.

    Raises ValueError naming a file that is missing or faulty, or a template without images. 1:N lists, points and
    scores may be missing: the result says so.
    """
    required = [meta / f"{name}_template_pair_label.txt", meta / f"{name}_face_tid_mid.txt"]
    lists = {gallery: meta / f"{name}_1N_gallery_{gallery}.csv" for gallery in GALLERIES[name]}
    mixed, detected = meta / f"{name}_1N_probe_mixed.csv", meta / f"{name}_name_5pts_score.txt"
    media, pairs = read_media(required[1]), read_template_pairs(required[0])
    galleries = {gallery: read_subjects(file) for gallery, file in lists.items() if file.is_file()}
    probes = read_subjects(mixed) if mixed.is_file() else None
    missing = [f"{file}: not found: no 1:N search of it" for file in lists.values() if not file.is_file()]
    if probes is None:
        missing.append(f"{mixed}: not found: no 1:N search")
    known = np.unique(media.template)
    for file, ids in (
        *((required[0], ids) for ids in pairs[:2]),
        *((lists[gallery], one.template) for gallery, one in galleries.items()),
        *([(mixed, probes.template)] if probes else []),
    ):
        absent = ids[~np.isin(ids, known)]
        if len(absent):
            raise ValueError(f"{file}: template {absent[0]}: got no images in {required[1]}, wanted some")
    return Protocol(
        media,
        pairs,
        read_detections(detected) if detected.is_file() else None,
        galleries if probes else {},
        probes,
        tuple(missing),
        _digest([*required, *lists.values(), mixed]),
    )


def read_media(file: Path) -> Media:
    """Read ``*_face_tid_mid.txt``: image name, which may have blanks, template id and media id."""
    names, numbers = _named(file, 2, "name template media")
    whole = numbers.astype(np.int64)
    return Media(np.array(names), whole[:, 0], whole[:, 1])


def read_detections(file: Path) -> Detections:
    """Read ``*_name_5pts_score.txt``: image name, x and y of five points, score."""
    names, numbers = _named(file, POINTS + 1, "name, x and y of five points, score")
    place: dict[str, int] = {}
    for row, name in enumerate(names):
        if not np.array_equal(numbers[place.setdefault(name, row)], numbers[row]):
            raise ValueError(f"{file}: got two faces for {name}, wanted one")
    return Detections(str(file), place, numbers[:, :POINTS].reshape(-1, 5, 2), numbers[:, POINTS])


def read_template_pairs(file: Path) -> tuple[IntArray, IntArray, BoolArray]:
    """Read ``*_template_pair_label.txt``: two template ids and 1 (one person) or 0."""
    wanted = "template template label"
    try:
        columns = np.loadtxt(file, np.int64, ndmin=2, comments=None, encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}, wanted lines of: {wanted}") from None
    if columns.size == 0 or columns.shape[1] != 3:
        raise ValueError(f"{file}: got {columns.shape[1]} columns in {len(columns)} lines, wanted: {wanted}")
    if not np.isin(columns[:, 2], (0, 1)).all():
        raise ValueError(f"{file}: got a label that is neither 0 nor 1")
    return columns[:, 0], columns[:, 1], columns[:, 2] == 1


def read_subjects(file: Path) -> Subjects:
    """Read the distinct templates of a 1:N list and their subjects, from the columns of these names."""
    reader = csv.DictReader(read_lines(file))
    absent = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
    if absent:
        raise ValueError(f"{file}: got no column {absent[0]}, wanted {' and '.join(COLUMNS)}")
    subject_of: dict[int, int] = {}
    for line in reader:
        try:
            template, subject = (int(line[name]) for name in COLUMNS)
        except (TypeError, ValueError):
            got = ", ".join(str(line[name]) for name in COLUMNS)
            raise ValueError(f"{file}, line {reader.line_num}: got {got}, wanted whole numbers") from None
        if subject_of.setdefault(template, subject) != subject:
            raise ValueError(f"{file}: template {template}: got two subjects, wanted one")
    if not subject_of:
        raise ValueError(f"{file}: got no templates, wanted some")
    ids = np.array(sorted(subject_of))
    return Subjects(ids, np.array([subject_of[template] for template in ids.tolist()]))


def _named(file: Path, count: int, wanted: str) -> tuple[list[str], NDArray[Any]]:
    """Names, and `[N, count]` numbers, of lines that end with so many; a name may have blanks and a #."""
    names, numbers = [], []
    for number, line in enumerate(read_lines(file), start=1):
        if line.strip():
            name, *rest = line.rsplit(maxsplit=count)
            if len(rest) != count:
                raise ValueError(f"{file}, line {number}: got {line!r}, wanted: {wanted}")
            names.append(name.strip())
            numbers.append(rest)
    if not names:
        raise ValueError(f"{file}: got no lines, wanted lines of: {wanted}")
    try:
        return names, np.array(numbers, np.float64)
    except ValueError as error:
        raise ValueError(f"{file}: {error}, wanted lines of: {wanted}") from None


def _digest(files: list[Path]) -> str:
    return hashlib.sha256("\n".join(filter(None, map(file_sha256, files))).encode()).hexdigest()
