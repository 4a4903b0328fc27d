"""Weights of a known backbone: arcface_torch's, CVLface's and opensphere's names, never run as a pickle."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.backbones import BACKBONES, Backbone
from pipeline.evaluation.embedding.feeding import MEAN, SCALE, Fed, Feeding, Given, read_description
from pipeline.evaluation.embedding.ir import as_iresnet, is_ir
from pipeline.evaluation.embedding.source import Network
from pipeline.evaluation.embedding.trained import digest_of

# Keys under which checkpoints keep a backbone's weights.
WRAPPERS = ("state_dict_backbone", "state_dict", "model", "backbone", "net")
PREFIXES = ("module.", "model.", "backbone.", "net.")  # before every name, from DataParallel or a training script
CLASSIFIERS = ("head.", "classifier.", "margin.", "logits.")  # of a training script, not of the backbone
# arcface_torch, CVLface and opensphere scale a pixel by (pixel / 255 - 0.5) / 0.5.
ARCFACE = Given(None, "RGB", (127.5,), (1 / 127.5,), "NCHW", "float32")
SPHEREFACE = Given(None, "RGB", (127.5,), (1 / 128,), "NCHW", "float32")


@dataclass(frozen=True)
class Published:
    """A backbone with weights that were trained elsewhere.

    Attributes:
        backbone: which network.
        weights: by the names of its module; numbers are float32.
        feeding: how the network takes its pixels.
    """

    backbone: Backbone
    weights: dict[str, torch.Tensor]
    feeding: Feeding

    def module(self) -> nn.Module:
        """The network with these weights, on the CPU, in evaluation mode."""
        module = self.backbone.build(self.feeding.size)
        module.load_state_dict(self.weights)
        return module.eval()


def read_published(file: Path, network: str, given: Given) -> Published:
    """The backbone `network` with the weights of `file`.

    Args:
        given: of its input, by flags; then a JSON beside the file counts, then the habit of the network's authors.

    Raises ValueError naming the file, and what does not fit.
    """
    weights = _backbone_of(read_weights(file))
    habit = SPHEREFACE if network.startswith("sphereface") else ARCFACE
    size = Given((112, 96) if network.startswith("sphereface") else (112, 112))
    feeding = given.filled(read_description(file.with_suffix(".json"))).filled(habit).filled(size).feeding(str(file))
    if is_ir(weights):
        weights = as_iresnet(weights)
    published = Published(_section(network, weights, file), weights, feeding)
    try:
        published.module()
    except RuntimeError as error:
        wanted = published.backbone.build(feeding.size).state_dict()
        reason = misfit(weights, wanted) or " ".join(str(error).split())[:300]
        raise ValueError(
            f"{file}: weights do not fit {network} at {feeding.height} × {feeding.width}: {reason}"
        ) from None
    return published


def misfit(got: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str:
    """In what tensors are not those that a network wants, with an example of each kind; empty if only in values."""
    found = {
        "missing": [name for name in wanted if name not in got],
        "not wanted": [name for name in got if name not in wanted],
        "of another shape": [
            f"{name}: got {list(got[name].shape)}, wanted {list(wanted[name].shape)}"
            for name in wanted
            if name in got and got[name].shape != wanted[name].shape
        ],
    }
    return "; ".join(f"{len(names):,} {what} ({names[0]})" for what, names in found.items() if names)


def load_weights(file: Path, network: str, given: Given) -> Network:
    """As `read_published`, ready to embed, on the CPU. Raises as it does."""
    found = read_published(file, network, given)
    digest = hashlib.sha256(f"{digest_of(found.weights)} {found.feeding}".encode())
    return Network(file.stem, digest.hexdigest(), 0, Fed(found.module(), found.feeding).eval(), found.feeding.size)


def for_our_pixels(published: Published) -> dict[str, torch.Tensor]:
    """The weights with which the network takes RGB, (pixel - 127.5) / 128, as training here feeds it.

    Order and scale of the channels go into the first convolution, exactly but for rounding. Another mean cannot: the
    convolution pads with zeros, which are the mean.

    Raises ValueError for such a mean, or a network that takes its pixels in another layout.
    """
    feeding = published.feeding
    if set(feeding.mean) != {MEAN} or (feeding.layout, feeding.dtype) != ("NCHW", "float32"):
        raise ValueError(
            f"input: got mean {list(feeding.mean)}, {feeding.layout}, {feeding.dtype}, "
            f"wanted mean {MEAN}, NCHW, float32: training here feeds no other"
        )
    network = published.module()
    first = next(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)) + ".weight"
    scale = torch.tensor(feeding.scale, dtype=torch.float64) / SCALE
    scaled = (published.weights[first].double() * scale[:, None, None]).float()
    return published.weights | {first: scaled.flip(1) if feeding.channels == "BGR" else scaled}


def read_weights(file: Path) -> dict[str, Any]:
    """The tensors of a ``.pth`` (with what is around them) or a safetensors file; a tensor alone is named "weight".

    Raises ValueError for a file that cannot be read, or a pickle that holds more than tensors and plain values.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file  # noqa: PLC0415 - here, since the extra may be missing

            return dict(load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: not a file of weights: {_unread(error)}") from None
    except Exception as error:  # safetensors has an exception of its own, which need not be installed
        if type(error).__module__.startswith("safetensors"):
            raise ValueError(f"{file}: not a file of weights: {error}") from None
        raise
    if isinstance(content, torch.Tensor):
        return {"weight": content}
    if not isinstance(content, dict):
        raise ValueError(f"{file}: got {type(content).__name__}, wanted a dictionary of tensors")  # noqa: TRY004
    return content


def _unread(error: Exception) -> str:
    """Why torch does not read a file, without its advice to run what is in it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if found := re.search(r"GLOBAL (\S+) was not", str(error)):
        return (
            f"got {found[1]} in its pickle, which is not run, wanted tensors alone: torch.save(network.state_dict(), …)"
        )
    if isinstance(error, RuntimeError):  # an archive that was cut
        return str(error).splitlines()[0]
    return "neither safetensors nor tensors as torch.save writes them"


def _backbone_of(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The backbone's tensors under the names of its module, its numbers as float32."""
    while wrapper := next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None):
        content = content[wrapper]
    weights = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in content.items()
        if isinstance(tensor, torch.Tensor)
    }
    while prefix := _prefix_in(weights):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in weights.items() if not name.startswith(CLASSIFIERS)}


def _prefix_in(names: Collection[str]) -> str | None:
    """The first of `PREFIXES` that some name has."""
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in names):
            return prefix
    return None


def _section(network: str, weights: dict[str, torch.Tensor], file: Path) -> Backbone:
    matrices = [tensor for tensor in weights.values() if tensor.ndim == 2]
    if not matrices:
        raise ValueError(f"{file}: got no matrix among {len(weights)} tensors, wanted the weights of {network}")
    return BACKBONES[network](name=network, embedding_dim=len(matrices[-1]))
