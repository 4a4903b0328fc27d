"""Weights of a known backbone: arcface_torch's and CVLface's names, ``.pth`` or safetensors, never run as a pickle."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.backbones import BACKBONES
from pipeline.evaluation.embedding.feeding import Fed, Given, read_description
from pipeline.evaluation.embedding.ir import IR
from pipeline.evaluation.embedding.source import Network
from pipeline.evaluation.embedding.trained import digest_of

WRAPPERS = ("state_dict", "model", "backbone", "net")  # keys under which checkpoints keep their weights
PREFIXES = ("module.", "model.", "backbone.", "net.")  # before every name, from DataParallel or a training script
CLASSIFIERS = ("head.", "classifier.", "margin.")  # of a training script, not of the backbone
# arcface_torch and CVLface feed RGB, (pixel / 255 - 0.5) / 0.5.
ARCFACE = Given(None, "RGB", (127.5,), (1 / 127.5,), "NCHW", "float32")
SPHEREFACE = Given(None, "RGB", (127.5,), (1 / 128,), "NCHW", "float32")


def load_weights(file: Path, network: str, given: Given) -> Network:
    """The backbone `network` with the weights of `file`, on the CPU.

    Args:
        given: of its input, by flags; then a JSON beside the file counts, then the habit of the network's authors.

    Raises ValueError naming the file, and what does not fit.
    """
    weights = _backbone_of(read_weights(file))
    habit = SPHEREFACE if network.startswith("sphereface") else ARCFACE
    size = Given((112, 96) if network.startswith("sphereface") else (112, 112))
    feeding = given.filled(read_description(file.with_suffix(".json"))).filled(habit).filled(size).feeding(str(file))
    module = _build(network, weights, feeding.size, file)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{file}: weights do not fit {network} at {feeding.height} × {feeding.width}: {reason}"
        ) from None
    digest = hashlib.sha256(f"{digest_of(weights)} {feeding}".encode())
    return Network(file.stem, digest.hexdigest(), 0, Fed(module, feeding).eval(), feeding.size)


def read_weights(file: Path) -> dict[str, Any]:
    """The tensors of a ``.pth`` (with what is around them) or a safetensors file.

    Raises ValueError for a file that cannot be read, or a pickle that holds more than tensors and plain values.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415 - here, since the extra may be missing

            return dict(load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: not a file of weights: {str(error).splitlines()[0]}") from None
    except Exception as error:  # safetensors has an exception of its own, which need not be installed
        if type(error).__module__.startswith("safetensors"):
            raise ValueError(f"{file}: not a file of weights: {error}") from None
        raise
    if not isinstance(content, dict):
        raise ValueError(f"{file}: got {type(content).__name__}, wanted a dictionary of tensors")  # noqa: TRY004
    return content


def _backbone_of(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The backbone's tensors under the names of its module."""
    while wrapper := next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None):
        content = content[wrapper]
    weights = {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}
    while prefix := _prefix_in(weights):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in weights.items() if not name.startswith(CLASSIFIERS)}


def _prefix_in(names: Collection[str]) -> str | None:
    """The first of `PREFIXES` that some name has."""
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in names):
            return prefix
    return None


def _build(network: str, weights: dict[str, torch.Tensor], size: tuple[int, int], file: Path) -> nn.Module:
    matrices = [tensor for tensor in weights.values() if tensor.ndim == 2]
    if not matrices:
        raise ValueError(f"{file}: got no matrix among {len(weights)} tensors, wanted the weights of {network}")
    dimension = len(matrices[-1])
    if any(name.startswith("body.0.res_layer") for name in weights):
        return IR(_layers(network, file), dimension, size)
    return BACKBONES[network](name=network, embedding_dim=dimension).build(size)


def _layers(network: str, file: Path) -> int:
    digits = network.removeprefix("iresnet")
    if not digits.isdecimal():
        raise ValueError(f"{file}: got weights of an IR network for {network!r}, wanted --network iresnet50 or 100")
    return int(digits)
