"""Weights of CVLface's and AdaFace's IR networks as those of an IResNet, which computes the same.

Kim et al., "AdaFace", CVPR 2022, follow Deng et al., "ArcFace", CVPR 2019. Beside the names two things differ: the
shortcut of the first block takes every second pixel as it is, where IResNet has a 1×1 convolution and a batch norm, and
the last batch norm has neither scale nor shift.
"""

from __future__ import annotations

import re

import torch

EPS = 1e-5  # of torch's batch norms

# The parts of a block, by their place in its ``res_layer``.
_PARTS = ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")
_ENDS = {
    "input_layer.0": "conv1",
    "input_layer.1": "bn1",
    "input_layer.2": "prelu",
    "output_layer.0": "bn2",
    "output_layer.3": "fc",
    "output_layer.4": "features",
}


def is_ir(weights: dict[str, torch.Tensor]) -> bool:
    """Whether these are the weights of an IR network."""
    return "body.0.res_layer.0.weight" in weights


def as_iresnet(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the IResNet that computes what an IR network with `weights` does; names it does not know pass."""
    places = _places(weights)
    named = {_renamed(name, places): tensor for name, tensor in weights.items()}
    channels = len(weights["input_layer.0.weight"])
    named |= _shortcut("layer1.0.downsample", channels)
    mean = named.get("features.running_mean")
    if mean is not None:
        named |= {"features.weight": torch.ones_like(mean), "features.bias": torch.zeros_like(mean)}
    return named


def _places(weights: dict[str, torch.Tensor]) -> dict[int, str]:
    """Number of a block in ``body`` -> its name in an IResNet. A stage begins where a shortcut has a convolution."""
    numbers = {int(found[1]) for name in weights if (found := re.match(r"body\.(\d+)\.", name))}
    places: dict[int, str] = {}
    stage, block = 1, 0
    for number in sorted(numbers):
        if number > 0 and f"body.{number}.shortcut_layer.0.weight" in weights:
            stage, block = stage + 1, 0
        places[number] = f"layer{stage}.{block}"
        block += 1
    return places


def _renamed(name: str, places: dict[int, str]) -> str:
    if found := re.fullmatch(r"body\.(\d+)\.(res|shortcut)_layer\.(\d)\.(\w+)", name):
        part = _PARTS[int(found[3])] if found[2] == "res" else f"downsample.{found[3]}"
        return f"{places[int(found[1])]}.{part}.{found[4]}"
    start, _, rest = name.rpartition(".")
    return f"{_ENDS[start]}.{rest}" if start in _ENDS else name


def _shortcut(at: str, channels: int) -> dict[str, torch.Tensor]:
    """A 1×1 convolution and a batch norm that change nothing."""
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    return {
        f"{at}.0.weight": torch.eye(channels)[:, :, None, None],
        f"{at}.1.weight": ones * (1 + EPS) ** 0.5,
        f"{at}.1.bias": zeros,
        f"{at}.1.running_mean": zeros,
        f"{at}.1.running_var": ones,
        f"{at}.1.num_batches_tracked": torch.tensor(0),
    }
