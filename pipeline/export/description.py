"""What an exported network takes and gives, in words that a program and a person can use.

Most wrong embeddings in the field come from a swapped channel order, another normalisation or another crop, so these
travel with the weights: in ``backbone.json``, and in the metadata of every ONNX file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluation.embedding.feeding import MEAN, SCALE, Feeding
from pipeline.evaluation.embedding.trained import TrainedBackbone
from pipeline.evaluation.results import Summary, result_file
from pipeline.run.folder import RunFolder

# Left eye, right eye, nose tip, left and right mouth corner (left as seen in the image), x and y in pixels of a crop
# 112 high and 96 wide: `coord5points` of SphereFace's published face_align_demo.m.
SPHEREFACE_POINTS = (
    (30.2946, 51.6963),
    (65.5318, 51.5014),
    (48.0252, 71.7366),
    (33.5493, 92.3655),
    (62.7299, 92.2041),
)
# InsightFace centres the same points in a crop 112 wide.
REFERENCE_POINTS = {
    (112, 96): SPHEREFACE_POINTS,
    (112, 112): tuple((x + 8.0, y) for x, y in SPHEREFACE_POINTS),
}


OPSETS = range(17, 24)  # torch writes 18, and what converts it changes nothing in these networks down to 17


@dataclass(frozen=True)
class Form:
    """What an exported graph does besides the backbone.

    Attributes:
        raw_pixels: it takes pixels from 0 to 255 and normalises them itself.
        mirror: it embeds the mirrored image too, and gives both embeddings side by side.
        opset: of its ONNX.
    """

    raw_pixels: bool = False
    mirror: bool = False
    opset: int = 18

    def __post_init__(self) -> None:
        """Raises ValueError for an opset that cannot be had."""
        if self.opset not in OPSETS:
            raise ValueError(f"opset: got {self.opset}, wanted {OPSETS.start} to {OPSETS.stop - 1}")


def description(trained: TrainedBackbone, form: Form, run: str, reached: Mapping[str, Summary]) -> dict[str, Any]:
    """The network, the input that it expects, what its output means, and what it reached on each set."""
    mean, scale = (0.0, 1.0) if form.raw_pixels else (MEAN, SCALE)
    feeding = Feeding(*trained.image_size, mean=(mean,), scale=(scale,))
    return {
        "backbone": trained.name,
        "run": run,
        "step": trained.step,
        "weights_sha256": trained.weights_sha256,
        "input": {"name": "images", **feeding.described()},
        "output": _output(trained.embedding_dim, form),
        "alignment": _alignment(trained.image_size),
        "accuracy": {name: summary.verification.accuracy.model_dump() for name, summary in reached.items()},
    }


def metadata(told: Mapping[str, Any]) -> dict[str, str]:
    """A description as the metadata of an ONNX file: text as it is, everything else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}


def evaluated(run: Path, trained: TrainedBackbone) -> dict[str, Summary]:
    """What the run's evaluations found for these very weights, by set."""
    found = {}
    for folder in sorted(RunFolder(run).evaluations.glob("*")):
        file = result_file(folder, trained.step)
        try:
            summary = Summary.model_validate_json(file.read_bytes())
        except (OSError, ValueError):
            continue  # of another step alone, or of an earlier version
        if summary.settings.weights_sha256 == trained.weights_sha256:
            found[folder.name] = summary
    return found


def _output(dimension: int, form: Form) -> dict[str, Any]:
    comparison = "cosine; for verification as reported, concatenate the embedding of the mirrored image first"
    if form.mirror:
        comparison = "cosine, as reported: the embeddings of the image and of its mirror, concatenated"
    size = 2 * dimension if form.mirror else dimension
    return {"name": "embeddings", "dtype": "float32", "dimension": size, "comparison": comparison}


def _alignment(size: tuple[int, int]) -> dict[str, Any] | None:
    if size not in REFERENCE_POINTS:
        return None
    return {
        "points_xy": REFERENCE_POINTS[size],
        "order": ["left eye", "right eye", "nose tip", "left mouth corner", "right mouth corner"],
        "note": "the published reference for this crop, by similarity transform; the training faces are taken to be so",
    }
