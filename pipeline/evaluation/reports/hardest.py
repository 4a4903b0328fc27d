"""The pairs that a model judges worst, as pictures for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.evaluation.protocols.pairs import frames_of
from pipeline.evaluation.results import Evaluation

HARDEST = 8  # pairs of each kind that are shown


@dataclass(frozen=True)
class Tile:
    """One hard pair: both faces (data URIs, empty if an image is gone), scores by model, right or wrong."""

    faces: tuple[str, str]
    names: tuple[str, str]
    scores: tuple[str, ...]
    wrong: bool


def hardest_tiles(models: Sequence[Evaluation], same: bool) -> list[Tile]:
    """The last model's lowest-scoring same pairs or highest-scoring different ones, hardest first."""
    final = models[-1]
    pairs = final.pairs
    kind = np.flatnonzero(pairs.same == same)
    hardest = kind[np.argsort(pairs.scores[kind] * (1 if same else -1), kind="stable")][:HARDEST]
    images = Path(final.summary.settings.images)
    tiles = []
    for i in hardest:
        threshold = final.summary.verification.thresholds[pairs.fold[i]]
        one, other = str(final.path_a[i]), str(final.path_b[i])
        tiles.append(
            Tile(
                faces=(_first_face(images, one), _first_face(images, other)),
                names=(one, other),
                scores=tuple(f"{score:.2f}" for score in _scores_of(models, i)),
                wrong=bool((pairs.scores[i] >= threshold) != same),
            )
        )
    return tiles


def _first_face(images: Path, path: str) -> str:
    """The image that `path` names, or a video's first frame."""
    frames = frames_of(images, path)
    return face_uri(images / frames[0]) if frames else ""


def face_uri(file: Path) -> str:
    """The image of a file as a data URI; empty when it cannot be read."""
    try:
        return uri_of(file.read_bytes())
    except OSError:
        return ""


def uri_of(data: bytes) -> str:
    """An encoded image as a data URI: a JPEG's own bytes, anything else as JPEG; empty when it is no image."""
    try:
        if not data.startswith(b"\xff\xd8"):
            stream = io.BytesIO()
            Image.open(io.BytesIO(data)).convert("RGB").save(stream, "JPEG", quality=90)
            data = stream.getvalue()
    except OSError:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _scores_of(models: Sequence[Evaluation], i: int) -> list[float]:
    """Pair `i`'s score under each model that was evaluated on the same list of pairs."""
    final = models[-1]
    return [e.pairs.scores[i] for e in models if e.summary.settings.pairs_sha256 == final.summary.settings.pairs_sha256]
