"""IJB-B and IJB-C: templates of several images and video frames, verified 1:1 and searched 1:N.

Whitelam et al., "IARPA Janus Benchmark-B", CVPRW 2017; Maze et al., "IARPA Janus Benchmark C", ICB 2018. Files are
those that InsightFace distributes for both sets: ``*_face_tid_mid.txt`` (image, template, media),
``*_template_pair_label.txt`` (template, template, 1 or 0) and ``*_1N_*.csv`` (TEMPLATE_ID, SUBJECT_ID, ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scoring.verification import BoolArray, IntArray


@dataclass(frozen=True)
class Media:
    """For each of `M` mentions of an image: its name, its template and its medium (a photograph or a video)."""

    names: NDArray[np.str_]
    template: IntArray
    medium: IntArray


def read_media(file: Path) -> Media:
    """Read ``*_face_tid_mid.txt``: image name, which may have blanks, template id and media id, separated by blanks."""
    try:
        lines = [line.rsplit(maxsplit=2) for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        names, templates, media = zip(*lines, strict=True)
        return Media(np.array(names), np.array(templates, np.int64), np.array(media, np.int64))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}, wanted lines of: name template media") from None


def read_template_pairs(file: Path) -> tuple[IntArray, IntArray, BoolArray]:
    """Read ``*_template_pair_label.txt``: two template ids and 1 (one person) or 0."""
    columns = _load(file, "template template label", dtype=np.int64, ncols=3)
    if not np.isin(columns[:, 2], (0, 1)).all():
        raise ValueError(f"{file}: got a label that is neither 0 nor 1")
    return columns[:, 0], columns[:, 1], columns[:, 2] == 1


def read_subjects(file: Path) -> tuple[IntArray, IntArray]:
    """Read the distinct templates of a 1:N list and their subjects: the first two columns of ``*_1N_*.csv``."""
    columns = _load(
        file, "TEMPLATE_ID,SUBJECT_ID,...", dtype=np.int64, delimiter=",", skiprows=1, usecols=(0, 1), ncols=2
    )
    ids, first = np.unique(columns[:, 0], return_index=True)
    return ids, columns[first, 1]


def _load(file: Path, wanted: str, ncols: int, **options: Any) -> NDArray[Any]:
    try:
        columns = np.loadtxt(file, ndmin=2, comments=None, **options)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}, wanted lines of: {wanted}") from None
    if columns.size == 0 or columns.shape[1] != ncols:
        raise ValueError(f"{file}: got {columns.shape[1]} columns in {len(columns)} lines, wanted: {wanted}")
    return columns
