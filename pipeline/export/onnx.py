"""A trained backbone for use elsewhere: ONNX, safetensors, and a JSON that describes its input.

Most wrong embeddings in the field come from a swapped channel order, another normalisation or another crop, so these
travel with the weights.
"""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from pipeline.evaluation.embedding.trained import TrainedBackbone
from pipeline.files import write_all, written_whole

OPSET = 18
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


def export(trained: TrainedBackbone, folder: Path) -> list[Path]:
    """Write ``backbone.onnx``, ``backbone.safetensors`` and ``backbone.json`` to `folder`; returns their paths.

    The ONNX graph maps ``images`` float32 `[batch, 3, H, W]` to ``embeddings`` float32 `[batch, D]`, any batch size.
    All three files appear, or none does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = trained.module.cpu().float().eval()
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    facts = {"backbone": trained.name, "weights_sha256": trained.weights_sha256}
    contents = {
        folder / "backbone.onnx": _onnx_of(module, trained.image_size),
        folder / "backbone.safetensors": save(weights, metadata=facts),
        folder / "backbone.json": (json.dumps(description(trained), indent=2) + "\n").encode(),
    }
    with ExitStack() as all_or_none:
        for file, content in contents.items():
            write_all(all_or_none.enter_context(written_whole(file)), content)
    return list(contents)


def description(trained: TrainedBackbone) -> dict[str, Any]:
    """The input that the network expects, and what its output means."""
    height, width = trained.image_size
    return {
        "backbone": trained.name,
        "step": trained.step,
        "weights_sha256": trained.weights_sha256,
        "input": {
            "name": "images",
            "dtype": "float32",
            "layout": "NCHW",
            "height": height,
            "width": width,
            "channels": "RGB",
            "normalisation": {"formula": "(pixel - 127.5) / 128", "mean": 127.5, "scale": 1 / 128},
        },
        "output": {
            "name": "embeddings",
            "dtype": "float32",
            "dimension": trained.embedding_dim,
            "comparison": "cosine; for verification as reported, concatenate the embedding of the mirrored image first",
        },
        "alignment": _alignment(trained.image_size),
    }


def _alignment(size: tuple[int, int]) -> dict[str, Any] | None:
    if size not in REFERENCE_POINTS:
        return None
    return {
        "points_xy": REFERENCE_POINTS[size],
        "order": ["left eye", "right eye", "nose tip", "left mouth corner", "right mouth corner"],
        "note": "the published reference for this crop, by similarity transform; the training faces are taken to be so",
    }


def _onnx_of(module: torch.nn.Module, size: tuple[int, int]) -> bytes:
    # The exporter warns that torchvision's operators are missing; no backbone has any.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch's exporter uses its own deprecated tree functions.
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            module,
            (torch.zeros(2, 3, *size),),
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString()
