"""A backbone as an ONNX graph: ``images`` `[batch, 3, H, W]` to ``embeddings`` `[batch, D]`, any batch size."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import onnx
import torch
from onnx import helper
from torch import nn

from pipeline.evaluation.embedding.feeding import MEAN, SCALE
from pipeline.export.description import Form


class Exported(nn.Module):
    """A backbone with what its form adds, see `Form`."""

    def __init__(self, backbone: nn.Module, form: Form) -> None:
        super().__init__()
        self.backbone, self.form = backbone, form

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings `[B, D]` of images `[B, 3, H, W]`; `[B, 2D]` with the mirror."""
        if self.form.raw_pixels:
            images = (images - MEAN) * SCALE
        embeddings: torch.Tensor = self.backbone(images)
        if self.form.mirror:
            embeddings = torch.cat([embeddings, self.backbone(images.flip(3))], dim=1)
        return embeddings


def program_of(backbone: nn.Module, size: tuple[int, int], form: Form) -> torch.export.ExportedProgram:
    """The graph as `torch.export` has it, of any batch size."""
    example = torch.zeros(2, 3, *size)
    batch = torch.export.Dim("batch")
    return torch.export.export(Exported(backbone, form).eval(), (example,), dynamic_shapes=({0: batch},))


def onnx_of(program: torch.export.ExportedProgram, opset: int) -> bytes:
    """The graph as ONNX, with the oldest IR version that has its opset: old runtimes refuse newer ones.

    Raises ValueError for an opset that these operators have not.
    """
    for part in ("_registration", "_compat"):  # they warn of torchvision, which nothing here needs, and of opset 17
        logging.getLogger(f"torch.onnx._internal.exporter.{part}").setLevel(logging.ERROR)
    logging.getLogger("onnxscript.version_converter").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch's exporter uses its own deprecated tree functions.
        warnings.simplefilter("ignore", FutureWarning)
        exported = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=["embeddings"],
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    (own,) = [entry.version for entry in model.opset_import if entry.domain == ""]
    if own != opset:
        raise ValueError(f"opset: got {own} from the converter, wanted {opset}: these operators have none so old")
    model.ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    _name_normalisation(model)
    return bytes(model.SerializeToString())


def with_metadata(model: bytes, facts: Mapping[str, str]) -> bytes:
    """The model with these facts in its metadata."""
    loaded = onnx.load_from_string(model)
    helper.set_model_props(loaded, dict(facts))
    return bytes(loaded.SerializeToString())


def _name_normalisation(model: Any) -> None:
    """InsightFace's package takes a graph that begins with nodes named Sub and Mul to normalise by itself."""
    for number, node in enumerate(model.graph.node):
        if node.op_type in {"Sub", "Mul"}:
            node.name = f"{node.op_type}_{number}"
