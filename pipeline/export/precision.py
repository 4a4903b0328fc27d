"""An ONNX graph in fewer bits: half floats, or 8-bit integers with the ranges of given images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static  # type: ignore[import-untyped]
from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]
from onnxruntime.transformers.float16 import convert_float_to_float16  # type: ignore[import-untyped]

PRECISIONS = ("fp16", "int8")


def lowered(model: bytes, precision: str, batches: Callable[[], Iterable[torch.Tensor]]) -> bytes:
    """The model in one of `PRECISIONS`; its input and output stay float32.

    `batches` gives inputs of the graph: over them int8's activations get their ranges.
    """
    if precision == "fp16":
        half = convert_float_to_float16(onnx.load_from_string(model), keep_io_types=True)
        return bytes(half.SerializeToString())
    return _int8(model, batches)


def _int8(model: bytes, batches: Callable[[], Iterable[torch.Tensor]]) -> bytes:
    """Weights by output channel and activations by tensor as int8, each operator between a pair of conversions."""
    with tempfile.TemporaryDirectory() as folder:
        whole, prepared, quantised = (Path(folder) / f"{name}.onnx" for name in ("whole", "prepared", "quantised"))
        whole.write_bytes(model)
        quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(quantised),
            _Reader(batches()),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
        )
        return _own_domains(quantised.read_bytes())


def _own_domains(model: bytes) -> bytes:
    """The model without the domains that onnxruntime lists and no operator is of: other runtimes refuse them."""
    loaded = onnx.load_from_string(model)
    used = {node.domain for node in loaded.graph.node} | {""}
    kept = [entry for entry in loaded.opset_import if entry.domain in used]
    del loaded.opset_import[:]
    loaded.opset_import.extend(kept)
    return bytes(loaded.SerializeToString())


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches as onnxruntime's calibration asks for them."""

    def __init__(self, batches: Iterable[torch.Tensor]) -> None:
        self._batches: Iterator[torch.Tensor] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The next input; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}
