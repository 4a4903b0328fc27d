"""How big a backbone is: its last map, its multiply-adds, and what a training step keeps of an image."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def feature_map(image_size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) after four halvings that round up, as both families' 3×3 convolutions of stride 2 and padding 1 do.

    Raises:
        ValueError: for a side below 1.
    """
    if min(image_size) < 1:
        raise ValueError(f"image_size: got {image_size}, wanted (height, width) of at least 1 pixel")
    height, width = image_size
    return math.ceil(height / 16), math.ceil(width / 16)


def count_macs(backbone: nn.Module, image_size: tuple[int, int]) -> int:
    """Multiply-adds of one image's forward pass in convolutions and matrix products; the backbone is untouched."""
    # On the meta device shapes flow and nothing is computed; a copy, because `to` moves a module in place.
    shadow = copy.deepcopy(backbone).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        shadow(torch.empty(1, 3, *image_size, device="meta"))
    return counter.get_total_flops() // 2


def activation_bytes(backbone: nn.Module, image_size: tuple[int, int], dtype: torch.dtype = torch.float32) -> int:
    """Bytes per image that autograd keeps from forward to backward; the backbone is untouched.

    Computed from shapes alone, hence independent of the device. With `dtype` bfloat16 every layer is taken to
    run in it, as under CUDA autocast (convolutions, PReLU, fc by its lists, batch norm by its input).
    """
    shadow = copy.deepcopy(backbone).to("meta", dtype).train()
    # The slope between two batches leaves out what does not grow with them: weights, batch-norm statistics.
    return (_saved_bytes(shadow, image_size, 4, dtype) - _saved_bytes(shadow, image_size, 2, dtype)) // 2


def _saved_bytes(shadow: nn.Module, image_size: tuple[int, int], batch: int, dtype: torch.dtype) -> int:
    # By storage, because a map that two layers keep is kept once; held, so that no address is reused meanwhile.
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        shadow(torch.empty(batch, 3, *image_size, device="meta", dtype=dtype))
    return sum(storage.nbytes() for storage in kept.values())
