"""What an optimizer is: recipe keys, the slots that it keeps, its update of rows, and its class for the backbone.

A file in this folder that adds a section to `OPTIMIZERS` is a whole optimizer. The rows of the head are updated by
`Optimizer.update_rows`, the backbone by an optimizer of torch inside DeepSpeed; both keep the slots that the section
declares. The checkpoint stores slots by name, the planner counts them, and nothing else knows what a slot is.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.optim.schedule import learning_rate
from pipeline.section import Choices, NamedSection, Section, check_rising

# Names of other tensors in the files of a checkpoint.
_RESERVED = ("backbone", "head", "rows")

# Layers whose parameters `norm_weight_decay` is for: batch and instance norms have one base class.
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Slot:
    """A float32 state that an optimizer keeps, zero before the first step.

    Args:
        name: in checkpoints.
        torch_key: in the state of the torch optimizer.
        per_number: one for each number of a parameter, as a momentum is: [S, D] for rows, the parameter's shape in the
            backbone. Else one for each row, [S], and for each parameter of the backbone, a scalar: a count of updates,
            say. In the backbone it must be the same for all parameters: ZeRO flattens many into one.

    Raises:
        ValueError: for a name that cannot stand in a checkpoint.
    """

    name: str
    torch_key: str
    per_number: bool = True

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in _RESERVED:
            raise ValueError(f"slot: got {self.name!r}, wanted a Python name other than {', '.join(_RESERVED)}")

    def zeros_for_rows(self, weight_SD: torch.Tensor) -> torch.Tensor:
        """The slot of rows before the first step."""
        return torch.zeros_like(weight_SD if self.per_number else weight_SD[:, 0], requires_grad=False)

    def zeros_for(self, parameter: torch.Tensor) -> torch.Tensor:
        """The slot of a parameter of the backbone before the first step.

        A count lies where the parameter does: torch's fused optimizers want it there.
        """
        if self.per_number:
            return torch.zeros_like(parameter, requires_grad=False)
        return torch.zeros((), device=parameter.device)


class RatePhase(Section):
    """A part of training with a schedule of its own: the rate rises and falls again, from `start` to the next phase."""

    start: int = Field(ge=1)
    """First step of the phase."""
    learning_rate: float = Field(gt=0)
    """The base rate of the phase."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of the phase over which the rate rises."""


class Optimizer(NamedSection):
    """How the backbone and the rows of the head learn: the keys that every optimizer has."""

    slots: ClassVar[tuple[Slot, ...]]
    """What the optimizer keeps, in the order of their names in a checkpoint."""

    steps: int = Field(ge=1)
    """Steps to train."""
    learning_rate: float = Field(gt=0)
    """The base rate, after the warm-up and before the first milestone."""
    rate_batch: int | None = Field(None, ge=1)
    """The global batch that learning_rate is for: with another the rate is in proportion (Goyal et al., 2017). null:
    the rate is as it stands, whatever the batch."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the rate rises linearly from near 0."""
    milestones: tuple[int, ...] = ()
    """Steps at which the rate is multiplied by decay."""
    decay: float = Field(0.1, gt=0, le=1)
    """Factor at each milestone."""
    power: float | None = Field(None, gt=0)
    """Instead of milestones, fall to 0 over the steps after the warm-up: 1 along a line, 2 along a parabola."""
    cosine: bool = False
    """Instead of milestones, fall to 0 along half a cosine over the steps after the warm-up."""
    phases: tuple[RatePhase, ...] = ()
    """Parts of training that begin the schedule anew, by rising start."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay of the head's rows and of the backbone's weights."""
    bias_rate_factor: float = Field(1.0, gt=0)
    """Biases learn at this multiple of the rate (Caffe's lr_mult; the authors' nets: 2)."""
    bias_weight_decay: float | None = Field(None, ge=0)
    """Weight decay of biases (the authors' nets: 0); null: the same as weight_decay."""
    norm_weight_decay: float | None = Field(None, ge=0)
    """Weight decay of normalisation layers, scales and biases (AdaFace's recipes: 0); null: as of other parameters."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the backbone's gradient over all ranks, to which a larger one is scaled; null: no clipping."""
    clip_rows: bool = False
    """Clip the head's rows with the backbone, by one norm over both; false, as arcface_torch: the backbone alone."""

    @model_validator(mode="after")
    def _possible(self) -> Optimizer:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones: got {list(self.milestones)}, wanted rising steps")
        check_rising(self.phases)
        falls = {"milestones": list(self.milestones), "power": self.power, "cosine": self.cosine}
        given = [key for key, value in falls.items() if value]
        if len(given) > 1:
            one, other = given[:2]
            raise ValueError(f"{other}: got {falls[other]} with {one} {falls[one]}, wanted one of the two")
        if self.clip_rows and self.clip_norm is None:
            raise ValueError("clip_rows: got true with clip_norm null, wanted a norm to clip to")
        return self

    @abstractmethod
    def update_rows(
        self, weight_nD: torch.Tensor, slots: Mapping[str, torch.Tensor], grad_nD: torch.Tensor, learning_rate: float
    ) -> None:
        """Update n rows and their slots (by name: [n, D] or [n]) in place; the gradient may be overwritten.

        A row may be left out of many steps (Partial FC) and steps may be dropped: an update that depends on how many
        there were before, as a bias correction does, keeps that number in a slot of its own.
        """

    def update_rows_unless(
        self,
        dropped: torch.Tensor,
        weight_nD: torch.Tensor,
        slots: Mapping[str, torch.Tensor],
        grad_nD: torch.Tensor,
        learning_rate: float,
    ) -> None:
        """`update_rows`, unless `dropped`, a float32 scalar on the rows' device, is 1: then nothing is changed.

        Here the host waits for the device to know. An optimizer whose update reads the scalar itself does not.
        """
        if not dropped.item():
            self.update_rows(weight_nD, slots, grad_nD, learning_rate)

    @abstractmethod
    def for_backbone(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The torch optimizer of these parameter groups, which have a ``weight_decay`` each.

        A fused one of torch reads on the device whether a step is dropped; for another the host waits to know.
        """

    def rate_for(self, global_batch: int, base: float | None = None) -> float:
        """The base rate, or that of a phase, with this batch."""
        base = self.learning_rate if base is None else base
        return base if self.rate_batch is None else base * global_batch / self.rate_batch

    def rate_in_words(self, global_batch: int) -> str:
        """The base rate with this batch, and where it comes from."""
        scaled = f"learning rate {self.rate_for(global_batch):g} for a batch of {global_batch:,}"
        if self.rate_batch in (None, global_batch):
            return scaled
        return f"{scaled}, in proportion to {self.learning_rate:g} for {self.rate_batch:,} (optimizer.rate_batch)"

    def learning_rate_at(self, step: int, global_batch: int) -> float:
        """The rate of `step`, from 0, with this batch. In a phase steps count from its start to that of the next."""
        starts = [0, *(phase.start for phase in self.phases), self.steps]
        number = bisect_right(starts[1:-1], step)
        start, end = starts[number], starts[number + 1]
        of = self if number == 0 else self.phases[number - 1]
        return learning_rate(
            step - start,
            self.rate_for(global_batch, of.learning_rate),
            steps=end - start,
            warmup_steps=of.warmup_steps,
            milestones=[milestone - start for milestone in self.milestones if start < milestone],
            decay=self.decay,
            power=self.power,
            cosine=self.cosine,
        )

    @classmethod
    def slots_per_number(cls) -> int:
        """Numbers kept for each number of a parameter."""
        return sum(slot.per_number for slot in cls.slots)

    @classmethod
    def slots_per_row(cls) -> int:
        """Numbers kept besides for each row of the head."""
        return len(cls.slots) - cls.slots_per_number()


OPTIMIZERS: Choices[Optimizer] = Choices("optimizer", default="sgd")


def parameter_groups(backbone: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """The backbone's trained parameters with their ``weight_decay`` and ``rate_factor`` (Caffe's decay_mult, lr_mult).

    Weights and biases are apart, and of either those of normalisation layers, if these have a weight decay of their
    own, and those that the backbone's ``no_weight_decay()`` names, if it has such a method. Frozen parameters are in no
    group: they have neither gradient nor slots, and ZeRO cannot hold them.

    Raises:
        ValueError: when ``no_weight_decay()`` names a parameter that there is not.
    """
    parameters = dict(backbone.named_parameters())
    undecayed: set[str] = getattr(backbone, "no_weight_decay", set)()
    if unknown := sorted(undecayed - parameters.keys()):
        raise ValueError(f"no_weight_decay: got {unknown[:3]}, wanted names of parameters")
    of_norms = set() if optimizer.norm_weight_decay is None else _of_norms(backbone)
    # ZeRO lays parameters out group by group: the order of these is part of a run's last bits
    groups: dict[tuple[bool, str], dict[str, Any]] = {
        (is_bias, kind): {
            "params": [],
            "weight_decay": decay,
            "rate_factor": optimizer.bias_rate_factor if is_bias else 1.0,
        }
        for kind, decays in _decays(optimizer).items()
        for is_bias, decay in zip((False, True), decays, strict=True)
    }
    for name, p in parameters.items():
        kind = "none" if name in undecayed else "norm" if name in of_norms else "plain"
        if p.requires_grad:
            groups[name.endswith("bias"), kind]["params"].append(p)
    return [group for group in groups.values() if group["params"]]


def _decays(optimizer: Optimizer) -> dict[str, tuple[float, float]]:
    """Weight decay of weights and of biases, by kind of parameter."""
    of_biases = optimizer.weight_decay if optimizer.bias_weight_decay is None else optimizer.bias_weight_decay
    of_norms = optimizer.norm_weight_decay or 0.0
    return {"plain": (optimizer.weight_decay, of_biases), "none": (0.0, 0.0), "norm": (of_norms, of_norms)}


def _of_norms(backbone: nn.Module) -> set[str]:
    """Names of the parameters of normalisation layers."""
    names: set[str] = set()
    for prefix, module in backbone.named_modules():
        if isinstance(module, _NORMS):
            names |= {name for name, _ in module.named_parameters(prefix, recurse=False)}
    return names
