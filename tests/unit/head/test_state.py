"""A margin's state: means over labelled samples only, steps of several micro-batches, steps that change nothing."""

from __future__ import annotations

import pytest
import torch

from pipeline.head.margins import Observed
from pipeline.head.state import MarginState
from tests.distributed.test_head_seams import NormMargin

MARGIN = NormMargin(rate=0.5)
COSINES, NORMS = torch.tensor([0.5, torch.nan, 0.1]), torch.tensor([4.0, 7.0, 2.0])
VALID = torch.tensor([True, False, True])


def test_means_are_over_those_with_a_label() -> None:
    values = torch.tensor([4.0, 100.0, 2.0, 6.0])
    some = Observed(values, values, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert some.mean(values).item() == 4
    assert some.deviation(values).item() == pytest.approx(torch.tensor([4.0, 2.0, 6.0]).std().item())
    one, none = (Observed(values, values, torch.tensor([valid, 0, 0, 0.0])) for valid in (1, 0))
    assert one.mean(values).item() == 4 and none.mean(values).item() == 0
    assert one.deviation(values).item() == none.deviation(values).item() == 0


def test_a_step_is_seen_whole_and_a_micro_batch_by_itself() -> None:
    state = MarginState(MARGIN.initial_state())
    held = state.tensors
    first = state.look(MARGIN, COSINES.nan_to_num(), NORMS, VALID)
    second = state.look(MARGIN, COSINES.nan_to_num(), 3 * NORMS, VALID)
    assert (float(first["norm"]), float(second["norm"])) == (2.0, 5.0), "each after the last step"
    assert float(state.tensors["norm"]) == 1
    state.advance(MARGIN, 0.1, torch.tensor(0.0))
    assert float(state.tensors["norm"]) == 3.5, "after (1 + mean of 4, 2, 12, 6) / 2"
    assert all(state.tensors[name] is value for name, value in held.items()), "a checkpoint holds these tensors"
    state.advance(MARGIN, 0.1, None)
    assert float(state.tensors["norm"]) == 3.5, "nothing new was seen"


@pytest.mark.parametrize("why", ["dropped", "forgotten", "without a label"])
def test_a_step_that_changes_nothing(why: str) -> None:
    state = MarginState(MARGIN.initial_state())
    norms = NORMS * torch.nan if why == "dropped" else NORMS
    state.look(MARGIN, COSINES.nan_to_num(), norms, VALID & (why != "without a label"))
    if why == "forgotten":
        state.forget()
    state.advance(MARGIN, 0.1, torch.tensor(float(why == "dropped")))
    assert {name: float(value) for name, value in state.tensors.items()} == {"norm": 1.0, "cosine": 0.0}
