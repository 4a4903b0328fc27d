"""How big a backbone is: its last map, its multiply-adds, and what a training step keeps of an image."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipeline.backbones.recompute import recompute


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
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - it brings Triton, a third of a second

    # On the meta device shapes flow and nothing is computed; a copy, because `to` moves a module in place.
    shadow = copy.deepcopy(backbone).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        shadow(torch.empty(1, 3, *image_size, device="meta"))
    return counter.get_total_flops() // 2


def activation_bytes(
    backbone: nn.Module,
    image_size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    blocks: Callable[[nn.Module], Sequence[nn.Module]] = lambda _: (),
) -> int:
    """Bytes per image that autograd keeps from forward to backward; the backbone is untouched.

    `blocks` are those of a network that are computed again in the backward pass: they keep their input alone, and the
    largest of them all of its own while the backward pass is in it.

    Computed from shapes alone, hence independent of the device. With `dtype` bfloat16 layers are taken to run as under
    CUDA autocast: in it (convolutions, PReLU, fc by its lists, batch norm by its input), but for layer norms.
    """
    shadow = copy.deepcopy(backbone).to("meta", dtype).train()
    if dtype == torch.bfloat16:
        _as_under_autocast(shadow)
    # The slope between two batches leaves out what does not grow with them: weights, batch-norm statistics.
    recomputed = blocks(shadow)
    at_work = [_saved_in_blocks(shadow, recomputed, image_size, batch, dtype) for batch in (2, 4)]
    largest = max(((four - two) // 2 for two, four in zip(*at_work, strict=True)), default=0)
    recompute(recomputed)
    return largest + (_saved_bytes(shadow, image_size, 4, dtype) - _saved_bytes(shadow, image_size, 2, dtype)) // 2


def _as_under_autocast(shadow: nn.Module) -> None:
    """Layer norms and a network's own parameters, so also what is added to them, in float32; casts before layers."""
    for module in shadow.modules():
        if isinstance(module, nn.LayerNorm):
            module.float().register_forward_pre_hook(lambda _, args: (args[0].float(),))
        elif isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(lambda _, args: (args[0].bfloat16(),))
        elif not type(module).__module__.startswith("torch.nn."):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()


class _FusedAttention(TorchFunctionMode):
    """Attention as a GPU computes it in bfloat16, whose scores are not held; on the meta device torch holds them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        plain = func is F.scaled_dot_product_attention and len(args) == 3 and kwargs.get("attn_mask") is None
        if plain and args[0].dtype == torch.bfloat16:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]
        return func(*args, **kwargs)


def _saved_in_blocks(
    shadow: nn.Module, blocks: Sequence[nn.Module], image_size: tuple[int, int], batch: int, dtype: torch.dtype
) -> list[int]:
    """Bytes that each block keeps besides its input, which is kept anyway."""
    found: list[int] = []
    with ExitStack() as hooks:
        for block in blocks:
            inside, keeping = ExitStack(), _Kept()

            def enter(_: nn.Module, args: Any, inside: ExitStack = inside, keeping: _Kept = keeping) -> None:
                keeping.leave_out(args[0])
                inside.enter_context(torch.autograd.graph.saved_tensors_hooks(keeping, lambda tensor: tensor))

            def leave(*_: Any, inside: ExitStack = inside, keeping: _Kept = keeping) -> None:
                inside.close()
                found.append(keeping.bytes)

            hooks.callback(block.register_forward_pre_hook(enter).remove)
            hooks.callback(block.register_forward_hook(leave).remove)
        if blocks:
            with _FusedAttention():
                shadow(torch.empty(batch, 3, *image_size, device="meta", dtype=dtype))
    return found


class _Kept:
    """What autograd keeps: by storage, because a map that two layers keep is kept once; held, lest one be reused."""

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._left_out: dict[int, torch.UntypedStorage] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage
        return tensor

    def leave_out(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._left_out[storage._cdata] = storage

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for key, storage in self._storages.items() if key not in self._left_out)


def _saved_bytes(shadow: nn.Module, image_size: tuple[int, int], batch: int, dtype: torch.dtype) -> int:
    keep = _Kept()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _FusedAttention():
        shadow(torch.empty(batch, 3, *image_size, device="meta", dtype=dtype))
    return keep.bytes
