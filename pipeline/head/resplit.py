"""A head's state for other ranks than those that saved it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

_ROWS = "rows."


def of_classes(states: Iterable[Mapping[str, torch.Tensor]], classes: range) -> dict[str, torch.Tensor]:
    """The state of a rank that has `classes`, from the states of as many ranks as there were, in any order.

    Replicas may be among them. States that were loaded with ``mmap=True`` are read no further than is needed.

    Args:
        states: each a head's ``state_dict()``.
        classes: ``head.classes`` of the head that is to load it.

    Raises:
        ValueError: when rows are missing, or the states are not of one head.
    """
    parts = sorted(states, key=lambda state: state["classes"].tolist())
    totals = sorted({int(state["classes"][2]) for state in parts})
    if len(totals) != 1 or classes.stop > totals[0]:
        raise ValueError(f"states: got heads of {totals} classes, wanted one head that has class {classes.stop - 1}")
    if len(steps := sorted({int(state["step"]) for state in parts})) > 1:
        raise ValueError(f"states: got those of steps {steps}, wanted one step")
    taken: list[tuple[Mapping[str, torch.Tensor], slice]] = []
    reached = classes.start
    for state in parts:
        start, stop, _ = state["classes"].tolist()
        if start <= reached < min(stop, classes.stop):
            taken.append((state, slice(reached - start, min(stop, classes.stop) - start)))
            reached = min(stop, classes.stop)
    if reached < classes.stop:
        wanted = f"{classes.start} to {classes.stop - 1}"
        raise ValueError(f"states: got no row of class {reached}, wanted those of classes {wanted}")
    found = {
        key: torch.cat([state[key][rows] for state, rows in taken]) if key.startswith(_ROWS) else value
        for key, value in taken[0][0].items()
    }
    return found | {"classes": torch.tensor([classes.start, classes.stop, totals[0]])}
