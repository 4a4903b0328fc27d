"""ONNX networks as a source of features, run by onnxruntime."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from torch import nn

from pipeline.evaluation.embedding.feeding import Fed, Given, of_description, read_description
from pipeline.evaluation.embedding.source import Network
from pipeline.files import file_sha256

METADATA = "input"  # key of a model's metadata: the "input" of a backbone.json, as JSON
DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


class OnnxModule(nn.Module):
    """A model's first input to its first output of two dimensions; of any batch, even for a model of a fixed one.

    Raises ValueError for a file that is no such model.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        super().__init__()
        wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        usable = [name for name in wanted if name in onnxruntime.get_available_providers()]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, [*usable, "CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise ValueError(f"{file}: not a model that onnxruntime runs: {str(error).splitlines()[0]}") from None
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in DTYPES:
            got = [(one.name, one.type, one.shape) for one in inputs]
            raise ValueError(f"{file}: got inputs {got}, wanted one of images, float32 or uint8")
        flat = [one.name for one in outputs if len(one.shape) == 2]
        if not flat:
            raise ValueError(f"{file}: got outputs {[(o.name, o.shape) for o in outputs]}, wanted embeddings [B, D]")
        self.input, self.output = inputs[0], flat[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The output [B, D] float32, on the device of the images."""
        batch = np.ascontiguousarray(images.detach().cpu().numpy())
        fixed = self.input.shape[0] if isinstance(self.input.shape[0], int) else len(batch)
        parts = [self._run(batch[start : start + fixed], fixed) for start in range(0, len(batch), fixed)]
        return torch.from_numpy(np.concatenate(parts)).float().to(images.device)

    def _run(self, part: Any, fixed: int) -> Any:
        missing = fixed - len(part)
        full = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        (found,) = self.session.run([self.output], {self.input.name: full})
        return found[: len(part)]


def load_onnx(file: Path, given: Given, device: torch.device) -> Network:
    """The network of an ONNX file.

    Args:
        given: of its input, by flags; then its metadata, a JSON beside it, and the shape of its input count.

    Raises ValueError naming the file and what it lacks.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    module = OnnxModule(file, device)
    digest = _digest(content, file.parent)
    known = given.filled(_metadata(module, file)).filled(read_description(file.with_suffix(".json")))
    feeding = known.filled(_shape(module)).feeding(str(file))
    shape = _shape(module).size
    if shape is not None and shape != feeding.size:
        raise ValueError(
            f"{file}: size: got {feeding.height}x{feeding.width}, wanted that of its input, {shape[0]}x{shape[1]}"
        )
    return Network(
        file.stem, hashlib.sha256(f"{digest} {feeding}".encode()).hexdigest(), 0, Fed(module, feeding), feeding.size
    )


def _digest(content: bytes, folder: Path) -> str:
    """Of a model and of the files in its folder that hold its weights, as torch's exporter leaves them by default."""
    digest = hashlib.sha256(content)
    tensors = onnx.load_from_string(content).graph.initializer
    for name in sorted({ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)}):
        digest.update(file_sha256(folder / name).encode())
    return digest.hexdigest()


def _metadata(module: OnnxModule, file: Path) -> Given:
    text = module.session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        return Given()
    try:
        return of_description(json.loads(text))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: metadata {METADATA!r}: {error}, wanted what stages/export.py writes") from None


def _shape(module: OnnxModule) -> Given:
    """What the model's own input says: size where it is fixed, layout, type."""
    shape = module.input.shape
    layout = "NHWC" if shape[3] == 3 else "NCHW"
    height, width = (shape[1], shape[2]) if layout == "NHWC" else (shape[2], shape[3])
    fixed = isinstance(height, int) and isinstance(width, int)
    return Given((height, width) if fixed else None, layout=layout, dtype=DTYPES[module.input.type])
