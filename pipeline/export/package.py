"""A trained backbone for use elsewhere: a folder of ONNX, safetensors, a description and a model card."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from pipeline.evaluation.embedding.source import How, ImageList
from pipeline.evaluation.embedding.trained import TrainedBackbone
from pipeline.evaluation.sets import VerificationSet
from pipeline.export.card import model_card
from pipeline.export.description import Form, description, evaluated, metadata
from pipeline.export.loss import Judged, inputs, judged
from pipeline.export.onnx import onnx_of, program_of, with_metadata
from pipeline.export.precision import lowered
from pipeline.files import write_all, written_whole


@dataclass(frozen=True)
class Lower:
    """Precisions to export beside float32, the set on which their loss is measured, and faces for int8's ranges."""

    precisions: tuple[str, ...]
    measured_on: VerificationSet
    calibration: ImageList
    how: How = field(default_factory=How)


def export(
    trained: TrainedBackbone,
    folder: Path,
    run: Path,
    form: Form,
    lower: Lower | None = None,
    pt2: bool = False,
) -> list[Path]:
    """Write the files to `folder`; returns their paths.

    ``backbone.onnx`` maps ``images`` float32 `[batch, 3, H, W]` to ``embeddings`` float32, any batch size;
    ``backbone.fp16.onnx`` and ``backbone.int8.onnx`` the same in fewer bits, ``backbone.pt2`` is the graph for
    `torch.export.load`, ``backbone.safetensors`` the weights, ``backbone.json`` the description, and ``MODEL_CARD.md``
    is for people. All files appear, or none does. `run` is the run's folder, for its name and its evaluations.

    Raises ValueError for an opset that cannot be had or images without features, NotWrittenError for a full disk.
    """
    reached = evaluated(run, trained)
    told = description(trained, form, run.resolve().name, reached)
    folder.mkdir(parents=True, exist_ok=True)  # before what takes long
    module = trained.module.cpu().float().eval()
    program = program_of(module, trained.image_size, form)
    models = {"backbone.onnx": with_metadata(onnx_of(program, form.opset), metadata(told))}
    losses: dict[str, Judged] = {}
    if lower:
        models |= _lowered(models["backbone.onnx"], lower, told)
        losses = judged(models, lower.measured_on, lower.how)
        told["precisions"] = {"set": lower.measured_on.name, **{name: _facts(loss) for name, loss in losses.items()}}
        models = {name: with_metadata(model, metadata(told)) for name, model in models.items()}
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    identity = {"backbone": trained.name, "weights_sha256": trained.weights_sha256}
    contents = {
        **models,
        "backbone.safetensors": save(weights, metadata=identity),
        "backbone.json": (json.dumps(told, indent=2) + "\n").encode(),
        "MODEL_CARD.md": model_card(told, run, reached, losses).encode(),
    }
    if pt2:
        stream = io.BytesIO()
        torch.export.save(program, stream)
        contents["backbone.pt2"] = stream.getvalue()
    return _write(contents, folder)


def _lowered(model: bytes, lower: Lower, told: Mapping[str, Any]) -> dict[str, bytes]:
    found = {}
    for precision in lower.precisions:
        fewer = lowered(model, precision, lambda: inputs(model, lower.calibration, lower.how))
        found[f"backbone.{precision}.onnx"] = with_metadata(fewer, metadata(told))
    return found


def _facts(loss: Judged) -> dict[str, Any]:
    facts = {"bytes": loss.size_bytes, "accuracy": loss.accuracy.mean}
    if loss.gain is not None:
        facts |= {"above_float32": loss.gain.mean, "low": loss.gain.low, "high": loss.gain.high}
    return facts


def _write(contents: Mapping[str, bytes], folder: Path) -> list[Path]:
    files = [folder / name for name in contents]
    with ExitStack() as all_or_none:
        for file, content in zip(files, contents.values(), strict=True):
            write_all(all_or_none.enter_context(written_whole(file)), content)
    return files
