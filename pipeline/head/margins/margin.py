"""What a margin is: keys of the recipe, pure functions from a batch to its target logits, and state if it needs any."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, TypeAlias

import torch
from pydantic import Field
from torch.nn import functional as F

from pipeline.head.margins.angular import cosine
from pipeline.section import Choices, NamedSection

State: TypeAlias = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Target:
    """The embeddings of a batch beside the rows of their target classes; all with gradients.

    Attributes:
        x_GD: embeddings.
        rows_GD: the row of each sample's target class, raw (not normalised).
        normal_G: a number of the standard normal distribution for each sample, if the margin `draws`.
    """

    x_GD: torch.Tensor
    rows_GD: torch.Tensor
    normal_G: torch.Tensor | float = 0.0

    @cached_property
    def embedding_norm_G(self) -> torch.Tensor:
        """‖x‖."""
        return self.x_GD.norm(dim=1)

    @cached_property
    def cosine_G(self) -> torch.Tensor:
        """cos θ, within [-1, 1]."""
        return cosine(self.x_GD, self.rows_GD)

    @cached_property
    def product_G(self) -> torch.Tensor:
        """x·w."""
        return (self.x_GD * self.rows_GD).sum(1)


@dataclass(frozen=True)
class Observed:
    """The samples of a batch, over all ranks and replicas, detached.

    Attributes:
        cosine_G: cos θ to the target class.
        embedding_norm_G: ‖x‖.
        valid_G: 1 for a sample with a label, 0 for one without, whose other numbers mean nothing.
    """

    cosine_G: torch.Tensor
    embedding_norm_G: torch.Tensor
    valid_G: torch.Tensor

    def mean(self, values_G: torch.Tensor) -> torch.Tensor:
        """The mean over the samples with a label; 0 if there is none."""
        return (values_G * self.valid_G).sum() / self.valid_G.sum().clamp(min=1)

    def deviation(self, values_G: torch.Tensor) -> torch.Tensor:
        """The standard deviation over the samples with a label, unbiased; 0 if there are fewer than two."""
        squares = (values_G - self.mean(values_G)).square() * self.valid_G
        return (squares.sum() / (self.valid_G.sum() - 1).clamp(min=1)).sqrt()


class Warp(Protocol):
    """What happens to the logits s cos θ of the non-target classes: they become s · value(cos θ), elementwise.

    Cosines come as [classes, G]: what differs from sample to sample is a tensor [G].
    """

    @property
    def scale(self) -> float:
        """s."""

    def value(self, cosine: torch.Tensor) -> torch.Tensor:
        """What the cosine becomes."""

    def slope(self, cosine: torch.Tensor) -> torch.Tensor:
        """d value / d cosine, or what stands for it in the gradient."""


class Margin(NamedSection):
    """A margin. Its fields are the keys of ``head.margin`` that it reads; its methods are pure functions.

    Attributes:
        draws: whether it reads ``target.normal_G``, a hash of (seed, step, sample).

    `target_logit` is all that a margin must have. A margin with state declares it in `initial_state` and says in
    `next_state` what it is after a batch. The head keeps what the last good step left, replaces it after a good step
    only, and stores it with the checkpoint. `target_logit` gets the state after the batch at hand, as the running means
    of the papers have it: of a micro-batch, if a step has several. It is the same on every rank.
    """

    draws: ClassVar[bool] = False

    @property
    def normalises_rows(self) -> bool:
        """Whether a row enters as w/‖w‖."""
        return True

    @property
    def needs_unit_rows(self) -> bool:
        """Whether rows must be of length 1 as they are, which `head.unit_rows` sees to."""
        return False

    def features(self, x_GD: torch.Tensor) -> torch.Tensor:
        """What the rows are multiplied with [G, D], to give the logits of the non-target classes: x itself."""
        return x_GD

    @property
    def warp(self) -> Warp | None:
        """What happens to the logits of the non-target classes; None: nothing."""
        return None

    def warp_of_batch(self, state: State, target_cosine_G: torch.Tensor | None) -> Warp | None:
        """`warp`, for a margin with state whose warp depends on it, or on cos θ to the target classes (None without).

        Args:
            state: as in `target_logit`.
            target_cosine_G: of all samples, wherever their target row is, without a gradient; 0 without a label.
        """
        return self.warp

    @abstractmethod
    def target_logit(self, target: Target, lambda_: float | None, state: State) -> torch.Tensor:
        """Logit [G] of each sample's target class.

        Args:
            target: what the batch is. Samples whose target class is on another rank, or that carry no label, are
                there too: what they get is discarded.
            lambda_: what `lambda_at` says of the step.
            state: that of the last good step and of the batch at hand; not to be changed.
        """

    def penalty(self, target: Target) -> torch.Tensor | None:
        """What is added to the loss of each sample [G], whatever the other classes are; None: nothing.

        As in `target_logit`, what samples get whose target class is on another rank is discarded.
        """
        return None

    def margin_angle(self, theta: torch.Tensor) -> torch.Tensor:
        """The angle φ(θ) whose cosine the target logit has: beyond π it lies on an extension of the cosine."""
        return theta

    @property
    def changes_angle(self) -> bool:
        """Whether `margin_angle` is another angle than θ, and can pass π."""
        return type(self).margin_angle is not Margin.margin_angle

    @property
    def is_margin(self) -> bool:
        """Whether there is anything to make smaller: not for the controls, which have no keys."""
        return type(self).model_fields.keys() != {"name"}

    def loss_of_guessing(self, classes: int) -> float:
        """The loss if all classes of so many are as near: ln C for a softmax, whatever the margin would add."""
        return math.log(classes)

    def lambda_at(self, step: int) -> float | None:
        """λ at `step`, counted from the phase's start; None: this margin has no λ."""
        return None

    @property
    def lambda_floor(self) -> float | None:
        """What λ falls to; None: this margin has no λ."""
        return None

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The state before the first step, by name: small tensors, whose shapes no key of a phase changes."""
        return {}

    def next_state(self, state: State, observed: Observed) -> dict[str, torch.Tensor]:
        """The state after a batch, the same names and shapes; a batch without a labelled sample leaves it."""
        return dict(state)


class ScaledMargin(Margin):
    """A margin that brings embeddings to one length."""

    scale: float = Field(64.0, gt=0)
    """s, the length given to embeddings."""

    def features(self, x_GD: torch.Tensor) -> torch.Tensor:
        """x brought to length s [G, D]."""
        return self.scale * F.normalize(x_GD, dim=1)


MARGINS: Choices[Margin] = Choices("margin", default="a_softmax")
