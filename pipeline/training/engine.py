"""The backbone inside DeepSpeed: the only file that knows DeepSpeed.

The head's rows stay outside (they are split, never averaged); what passes between the two is the embeddings and
their gradient. Facts that cost time to find:

- DeepSpeed averages gradients over ranks, which the head knows of: see `pipeline.head.law`.
- An optimizer of torch makes its state in its first step, and under ZeRO what does not exist cannot be loaded. The
  slots are created as zeros at the start, which leaves the first step bit for bit what it is.
- ZeRO holds trained parameters only. A frozen one is no part of DeepSpeed's optimizer, which answers None for it: it is
  saved and loaded with the module, and has no slots.
- The ``torch_autocast`` block keeps parameters fp32; the ``bf16`` block would round BatchNorm's statistics.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, product
from typing import Any, ClassVar

import deepspeed
import numpy as np
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import nn

from cluster.ranks.collectives import Group, num_ranks
from cluster.ranks.exchange import GradientExchange
from cluster.stopwatch import STEP
from pipeline.backbones import draws
from pipeline.optim import Slot
from pipeline.optim.optimizer import parameter_groups
from pipeline.recipe.schema import Recipe

# DeepSpeed clips nothing here, and would still compute a norm, for which the host waits. Older ones have no such key.
_CAN_LEAVE_NORM_OUT = "compute_grad_norm" in DeepSpeedZeroConfig.model_fields
_NO_NORM = {stage: {"compute_grad_norm": False} for stage in (1, 2) if _CAN_LEAVE_NORM_OUT}

# The slots of a backbone: slot -> parameter -> its tensor; for a slot that is not per number, a scalar.
Slots = Mapping[str, Mapping[str, torch.Tensor]]


class Engine:
    """Data-parallel training of a backbone: forward, backward from an embedding gradient, update, state.

    Needs the process group to exist.

    Args:
        backbone: on its device.
        recipe: what to do.
        group: all ranks.
    """

    channels_last_on: ClassVar = frozenset({"cuda"})
    """Types of devices on which images and weights lie channels last, with which cuDNN is twice as fast."""

    def __init__(self, backbone: nn.Module, recipe: Recipe, group: Group) -> None:
        self._num_ranks = num_ranks(group)
        self._stage, self._accumulation = recipe.zero_stage, recipe.data.accumulation
        self._num_parameters = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        self._sent_size = recipe.exchange_dtype.itemsize
        self._zero = recipe.zero_stage > 0
        self._parted = recipe.zero_stage == 3  # parameters too lie in parts on the ranks
        if not torch.cuda.is_available():
            # Only DeepSpeed's inference uses this kernel; without it a CPU run needs no C++ compiler.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._slots = recipe.optimizer.slots
        kinds = parameter_groups(backbone, recipe.optimizer)
        for kind in kinds:
            kind["rate_factor"] *= recipe.backbone.rate_factor
        self._optimizer = recipe.optimizer.for_backbone(kinds)
        self._dropped: torch.Tensor | None = None
        self._make_droppable()
        self._engine, *_ = deepspeed.initialize(
            model=backbone, optimizer=self._optimizer, config=_config(recipe, self._num_ranks, backbone)
        )
        if self._num_ranks == 1 and not self._zero:
            # There is no other rank to average with, and DeepSpeed would still copy every gradient twice: 6% of a step.
            self._engine.enable_backward_allreduce = False
        channels_last = next(backbone.parameters()).device.type in self.channels_last_on
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last and not self._zero:
            # Not before: DeepSpeed's broadcast cannot send them so. ZeRO lays them out flat: there only images are so.
            backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out
        if self._zero:
            # Timed apart from the backward pass. (ZeRO 2 reduces inside it: there, communication counts as backward.)
            self._engine.allreduce_gradients = _timed(self._engine.allreduce_gradients)
        elif self._num_ranks > 1:
            # DeepSpeed's own begins when the backward pass has ended. (Its `overlap_comm` is ZeRO's, needs CUDA's
            # streams, and ends with the host waiting for the device.)
            trained = [p for _, p in self._trained()]
            last = self._engine.is_gradient_accumulation_boundary
            exchange = GradientExchange(trained, group, recipe.exchange_dtype, last)
            self._engine.allreduce_gradients = exchange.finish
        self._create_slots()
        self._buffers: list[torch.Tensor] = []
        self._autocast = recipe.precision == "bfloat16"
        if recipe.backbone.compile:
            _compile(backbone)

    @property
    def module(self) -> nn.Module:
        """The backbone, fp32; its parameters are whole on every rank, but under ZeRO 3 (see `parameters`)."""
        return self._engine.module

    def embed(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, D], with a graph for `backward`."""
        return self._engine(images_BCHW.contiguous(memory_format=self._memory_format))

    def compile(self, image_size: tuple[int, int]) -> float:
        """Compile forward and backward pass of training for images of this size (H, W); the seconds that it took.

        Only if the recipe says so; before the first step, which would take as long otherwise. Nothing is changed.
        """
        started = time.perf_counter()
        device = next(self.module.parameters()).device
        images = torch.zeros(self._engine.train_micro_batch_size_per_gpu(), 3, *image_size, device=device)
        draws.draw(self.module, 0, 0, np.arange(len(images)), device)  # as in a step, or the first would compile again
        self.pass_alone(images)
        return time.perf_counter() - started

    def pass_alone(self, images_BCHW: torch.Tensor) -> None:
        """Forward and backward pass of which nothing is left: no gradient, nothing exchanged, buffers as they were.

        Not under ZeRO 3, whose parameters are not there.
        """
        self.keep_buffers()
        with torch.autocast(images_BCHW.device.type, torch.bfloat16, enabled=self._autocast):  # as DeepSpeed calls it
            embeddings_BD = self.module(images_BCHW.contiguous(memory_format=self._memory_format))
        # Not by `backward`: that is DeepSpeed's, which would count a micro-batch and reduce.
        torch.autograd.grad(embeddings_BD.sum(), [p for _, p in self._trained()])
        self.restore_buffers()

    def backward(self, embeddings_BD: torch.Tensor, grad_BD: torch.Tensor) -> None:
        """Backpropagate the gradient that the head has left at the embeddings of a micro-batch."""
        # A scalar with this gradient: DeepSpeed's backward takes scalars only.
        surrogate = (embeddings_BD * grad_BD).sum()
        self._engine.backward(surrogate, scale_wrt_gas=False)

    def keep_buffers(self) -> None:
        """Remember the buffers as they are before a step: its forward pass moves BatchNorm's statistics."""
        buffers = list(self.module.buffers())
        if self._buffers:
            _copy_all(self._buffers, buffers)
        else:
            self._buffers = [buffer.clone() for buffer in buffers]

    def restore_buffers(self) -> None:
        """Set the buffers back to what `keep_buffers` saw."""
        _copy_all(list(self.module.buffers()), self._buffers)

    def gradients(self) -> list[torch.Tensor]:
        """What this rank is about to apply, after a step's last backward pass: all of it or, under ZeRO, its part."""
        if not self._zero:
            return [p.grad for p in self.module.parameters() if p.grad is not None]
        parts = self._engine.optimizer.averaged_gradients.values()
        return list(chain.from_iterable(part or () for part in parts))

    @property
    def held_bytes(self) -> int:
        """Bytes on this rank between steps: parameters, buffers, the optimizer's slots, ZeRO's copy of its share."""
        parameters = [getattr(p, "ds_tensor", p) for p in self.module.parameters()]  # under ZeRO 3 this rank's part
        slots = [self._optimizer.state[held][slot.torch_key] for held, slot in product(self._held(), self._slots)]
        copies = self._held() if self._zero else []
        held = (*parameters, *self.module.buffers(), *self._buffers, *copies, *slots)
        return sum(tensor.nbytes for tensor in held)

    @property
    def sent_bytes(self) -> int:
        """What a rank sends in a step for the backbone, by shapes, were its collectives rings.

        A pass sends (N-1)/N of the parameters' bytes. Without ZeRO two passes exchange gradients. ZeRO 1 takes one to
        reduce gradients and one to gather parameters, which are fp32; ZeRO 2 reduces after every micro-batch; ZeRO 3
        also gathers in every forward and every backward pass.
        """
        reduces = (2, 1, self._accumulation, self._accumulation)[self._stage]
        gathers = (0, 1, 1, 2 * self._accumulation)[self._stage]
        numbers = (self._num_ranks - 1) * self._num_parameters
        return (reduces * self._sent_size + gathers * 4) * numbers // self._num_ranks

    @property
    def gradients_in_parts(self) -> bool:
        """Whether `gradients` is a part, of which every rank has another, and not the same on all."""
        return self._zero

    def step(self, learning_rate: float, dropped: torch.Tensor | None = None) -> None:
        """One update at a step's last micro-batch; between micro-batches, nothing but the count.

        If `dropped`, a float32 scalar on the device, is 1, the gradients are let go without being applied: parameters
        and slots stay as they are, bit for bit. (For buffers there is `restore_buffers`.) A fused optimizer reads the
        scalar on the device; for another the host waits to know.
        """
        self._dropped = dropped
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_factor"]
        self._engine.step()

    def parameters(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers, whole, by name: the live tensors; under ZeRO 3 copies, by a collective."""
        if not self._parted:
            return dict(self.module.state_dict())
        return {name: self._whole(p) for name, p in self.module.named_parameters()} | dict(self.module.named_buffers())

    def slots(self) -> dict[str, dict[str, torch.Tensor]]:
        """What the optimizer keeps of every trained parameter, whole: slot -> parameter -> tensor.

        Under ZeRO copies, by a collective on all ranks.
        """
        slots: dict[str, dict[str, torch.Tensor]] = {}
        for slot in self._slots:
            slots[slot.name] = {name: self._slot(p, slot) for name, p in self._trained()}
        return slots

    def load(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Set parameters and buffers, from any number of ranks and any ZeRO stage; names and shapes must match."""
        for name, buffer in self.module.named_buffers():
            buffer.copy_(parameters[name])
        for name, p in self.module.named_parameters():
            self._set_parameter(p, parameters[name])

    def load_slots(self, slots: Slots) -> None:
        """Set what `slots` gave, from any number of ranks and any ZeRO stage."""
        for slot in self._slots:
            self._set_slot(slot, slots[slot.name])

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    def _shape(self, p: torch.Tensor) -> torch.Size:
        return p.ds_shape if self._parted else p.shape  # type: ignore[attr-defined]  # ZeRO 3 adds it

    def _whole(self, p: nn.Parameter) -> torch.Tensor:
        """A copy of a parameter, under ZeRO 3."""
        if p.requires_grad:
            return safe_get_full_fp32_param(p).view(self._shape(p))
        with deepspeed.zero.GatheredParameters([p]):
            return p.detach().clone()

    def _set_parameter(self, p: nn.Parameter, value: torch.Tensor) -> None:
        if self._parted:
            part = _own_part(p, value)
            if p.requires_grad:
                safe_set_local_fp32_param(p, part)
            p.ds_tensor.data.copy_(part)  # type: ignore[attr-defined]  # what the next forward pass gathers
            return
        with torch.no_grad():
            p.copy_(value)
        if self._zero and p.requires_grad:
            safe_set_full_fp32_param(p, value)

    def _slot(self, p: nn.Parameter, slot: Slot) -> torch.Tensor:
        if not self._zero:
            return self._optimizer.state[p][slot.torch_key]
        if not slot.per_number:  # the same for all that ZeRO holds
            return self._optimizer.state[self._held()[0]][slot.torch_key]
        return safe_get_full_optimizer_state(p, slot.torch_key).view(self._shape(p))

    def _set_slot(self, slot: Slot, values: Mapping[str, torch.Tensor]) -> None:
        if self._zero and not slot.per_number:
            (value,) = {float(value) for value in values.values()}
            for held in self._held():
                self._optimizer.state[held][slot.torch_key].fill_(value)
            return
        for name, p in self._trained():
            if self._parted:
                safe_set_local_optimizer_state(p, _own_part(p, values[name]), slot.torch_key)
            elif self._zero:
                safe_set_full_optimizer_state(p, values[name], slot.torch_key)
            else:
                self._optimizer.state[p][slot.torch_key].copy_(values[name])

    def _held(self) -> list[torch.Tensor]:
        """The tensors that the optimizer updates on this rank: parameters or, under ZeRO, its parts of many in one."""
        if self._parted:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return list(chain.from_iterable(group["params"] for group in self._optimizer.param_groups))

    def _create_slots(self) -> None:
        for held in self._held():
            self._optimizer.state[held].update({slot.torch_key: slot.zeros_for(held) for slot in self._slots})
        if self._zero and not self._parted:
            # DeepSpeed finds the parts of a parameter in what exists; by itself it looks after its first step
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _make_droppable(self) -> None:
        """Let the optimizer sit a step out: DeepSpeed then clears and counts as ever, whatever its ZeRO stage."""
        step = partial(_plain_step(self._optimizer), self._optimizer)
        # How torch's own GradScaler asks: such an optimizer leaves everything as it is if its `found_inf` is 1.
        asks_device = getattr(self._optimizer, "_step_supports_amp_scaling", False)

        def step_unless_dropped(closure: Any = None) -> Any:
            if asks_device:
                self._optimizer.found_inf = self._dropped  # type: ignore[attr-defined]
            elif self._dropped is not None and self._dropped.item():
                return None
            with torch.no_grad():
                return step(closure)

        self._optimizer.step = step_unless_dropped  # type: ignore[method-assign]


def _plain_step(optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    """`step` of the optimizer's class without what torch wraps around it, which imports torch's compiler: for seconds.

    The wrappers also call hooks, of which there are none, and switch gradients off.
    """
    torchs = torch.optim.Optimizer.__module__
    return inspect.unwrap(type(optimizer).step, stop=lambda step: step.__globals__["__name__"] != torchs)


def _compile(backbone: nn.Module) -> None:
    """Compile the forward pass of training; the names of the state, and evaluation's many shapes, are not touched."""
    plain, compiled = backbone.forward, torch.compile(backbone.forward, dynamic=False)

    def forward(images_BCHW: torch.Tensor) -> torch.Tensor:
        return (compiled if backbone.training else plain)(images_BCHW)

    backbone.forward = forward


def _copy_all(into: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Copy each of `values` into its place: a launch for each type, and not one for each of hundreds of buffers."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in into):
        pairs = [(place, value) for place, value in zip(into, values, strict=True) if place.dtype == dtype]
        torch._foreach_copy_([place for place, _ in pairs], [value for _, value in pairs])


def _own_part(p: Any, value: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole parameter as ZeRO 3 cuts it: equal parts, the last padded with zeros.

    (DeepSpeed's own setter for whole values fails if the parts are equal only with padding.)
    """
    length = p.ds_tensor.numel()
    padded = torch.nn.functional.pad(value.flatten(), (0, length * deepspeed.comm.get_world_size() - value.numel()))
    return padded.narrow(0, length * deepspeed.comm.get_rank(), length)


def _config(recipe: Recipe, num_ranks: int, backbone: nn.Module) -> dict[str, Any]:
    # DeepSpeed's default bucket of 500 million numbers would cost 2 GB on any backbone. A bucket is allocated whole and
    # copied once more to be sent: the smallest that holds any one parameter.
    bucket = max(p.numel() for p in backbone.parameters())
    return {
        "train_batch_size": recipe.data.global_batch,
        "train_micro_batch_size_per_gpu": recipe.micro_batch(num_ranks),
        "gradient_accumulation_steps": recipe.data.accumulation,
        "zero_optimization": {
            "stage": recipe.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            # ZeRO 3 would keep small parameters whole, and a load would have to gather those again
            "stage3_param_persistence_threshold": 0,
            # ... and by default holds a billion numbers gathered: every backbone whole, on top of its parts
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
            **_NO_NORM.get(recipe.zero_stage, {}),
        },
        "gradient_clipping": 0.0,  # DeepSpeed clips to a norm of 1 by default
        "communication_data_type": {torch.float32: "fp32", torch.bfloat16: "bf16"}[recipe.exchange_dtype],
        "zero_allow_untested_optimizer": True,  # DeepSpeed knows Adam and its kin only
        "torch_autocast": {"enabled": recipe.precision == "bfloat16", "dtype": "bfloat16"},
        # DeepSpeed times every forward pass and every step by default, and waits for the whole device to do so
        "timers": {"throughput": {"enabled": False}},
        "steps_per_print": 2**62,  # our own progress line is enough
    }


def _timed(function: Any) -> Any:
    def timed(*args: Any, **kwargs: Any) -> Any:
        with STEP.part("communication"):
            return function(*args, **kwargs)

    return timed
