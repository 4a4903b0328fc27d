"""A network that anybody can compute by hand: one matrix, as an ONNX model with its input described in its metadata."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray


def write_linear(file: Path, size: tuple[int, int], width: int = 24) -> Array:
    """Write the model, whose embeddings are pixels (flat, ``(x - 127.5) / 128``) times the matrix that is returned."""
    matrix = np.random.default_rng(7).normal(size=(3 * size[0] * size[1], width)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "matrix"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    normalisation = {"mean": 127.5, "scale": 1 / 128}
    facts = {"height": size[0], "width": size[1], "channels": "RGB", "normalisation": normalisation}
    helper.set_model_props(model, {"input": json.dumps(facts)})
    onnx.save(model, str(file))
    return matrix


def by_hand(pixels: Array, matrix: Array) -> tuple[Array, Array]:
    """Embeddings in float64 of images `[N, H, W, 3]` and of their mirrors."""
    found = []
    for images in (pixels, pixels[:, :, ::-1]):
        flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        found.append((flat.astype(np.float64) - 127.5) / 128 @ matrix.astype(np.float64))
    return found[0], found[1]
