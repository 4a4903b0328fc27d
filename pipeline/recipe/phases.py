"""Phases of the recipe: other augmentations, another margin, another share of the classes from a step of training on.

Those of the learning rate are the optimizer's (`pipeline.optim.optimizer.RatePhase`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from pipeline.head.margins import MARGINS, Margin
from pipeline.reading.augmentation import AUGMENTATIONS, Augmentation
from pipeline.reading.mixes import with_mixes
from pipeline.section import Section

Augmentations = Annotated[tuple[Annotated[Augmentation, AUGMENTATIONS], ...], BeforeValidator(with_mixes)]


class AugmentPhase(Section):
    """A part of training with other augmentations."""

    start: int = Field(ge=1)
    """First step of the phase."""
    augment: Augmentations
    """All changes to the training images from there on, as in data.augment."""


class Phase(Section):
    """A part of training with other values of the margin's keys, given beside `start`; λ counts its steps from there.

    A key that a phase does not give is as in ``head.margin``, and sample_rate as in ``head``. The name cannot change.
    """

    model_config = ConfigDict(extra="allow")

    start: int = Field(ge=0)
    """First step of the phase."""
    sample_rate: float | None = Field(None, gt=0, le=1)
    """Share of the non-target classes in this phase: sampled first, exact last; null: as head.sample_rate."""

    @property
    def changes(self) -> dict[str, Any]:
        """The margin's keys that differ in this phase."""
        return dict(self.model_extra or {})

    def changed(self, margin: Margin) -> Margin:
        """The margin in this phase of one that is `margin` before the first.

        Raises:
            ValueError: for another name; for other keys or values, a fault that `pipeline.section.faults` takes apart.
        """
        if "name" in self.changes:
            raise ValueError(f"name: got {self.changes['name']!r}, wanted one margin for the whole run")
        return MARGINS.parse(margin.model_dump(mode="json") | self.changes)


def phase_at(phases: Sequence[Phase], step: int) -> Phase | None:
    """The one of rising phases that `step` is in; None before the first."""
    return next((phase for phase in reversed(phases) if phase.start <= step), None)
