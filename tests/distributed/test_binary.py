"""Binary classifications: rows and bias learn as in a dense float64 run, on any ranks, fused or in micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.head import HeadOptions
from pipeline.head.margins import MARGINS, Margin
from pipeline.head.rows import initial_rows
from tests.distributed.dense import binary_loss, initial_bias
from tests.distributed.ranks import run_ranks
from tests.distributed.test_head_seams import BAD, CLASSES, DIM, batches, head_batches, train_head

CHOICES: dict[str, dict[str, Any]] = {
    "sphereface2": {"name": "sphereface2", "scale": 4, "loss_weight": 2, "detached": False},
    "uniface": {"name": "uniface", "scale": 4},
}


def train_each(rank: int, ranks: int, width: int | None, parts: int, options: HeadOptions) -> dict[str, Any]:
    """The last step but one is dropped."""
    return {
        name: train_head(rank, ranks, MARGINS.parse(choice), width, parts, options) for name, choice in CHOICES.items()
    }


def dense_run(margin: Margin, of_losses: list[list[int]]) -> dict[str, torch.Tensor]:
    """All similarities at once, and torch's SGD on rows and bias; the loss is the mean of those of its parts."""
    weight = initial_rows(range(CLASSES), DIM, seed=3).double().requires_grad_()
    keys = margin.model_dump()
    bias = torch.tensor(initial_bias(keys, CLASSES)).double().requires_grad_()
    sgd = torch.optim.SGD([weight, bias], lr=0.2, momentum=0.9)
    biases, momenta = [], []
    for step, (x, labels) in enumerate(batches()):
        if step != BAD:
            cosines = (x / x.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).t()
            is_target = torch.arange(CLASSES) == labels[:, None]
            sgd.zero_grad()
            loss = (weight.sum() + bias) * 0
            for samples in of_losses:
                valid = [sample for sample in samples if labels[sample] >= 0]
                losses = [binary_loss(cosines[sample], is_target[sample], bias, keys) for sample in valid]
                if losses:
                    loss = loss + torch.stack(losses).mean() / len(of_losses)
            loss.backward()
            sgd.step()
        biases.append(bias.detach().clone())
        momenta.append(sgd.state[bias]["momentum_buffer"].clone())
    return {"rows": weight.detach(), "states": torch.stack([torch.stack(biases), torch.stack(momenta)], dim=1)}


WAYS = [(1, None, 1, True), (2, None, 1, False), (3, None, 2, False), (2, 1, 1, True), (2, 1, 2, False)]


@pytest.mark.parametrize(("ranks", "width", "parts", "fused"), WAYS)
def test_rows_and_bias_learn_as_in_a_dense_run(ranks: int, width: int | None, parts: int, fused: bool) -> None:
    results = run_ranks(train_each, ranks, width, parts, HeadOptions(block=4, fused_update=fused))
    of_losses = [samples for samples, _ in head_batches(ranks, width or ranks, parts)]
    for name, choice in CHOICES.items():
        want = dense_run(MARGINS.parse(choice), of_losses)
        for result in results:
            got = result[name]
            states = got["states"].flatten(1)
            torch.testing.assert_close(states.double(), want["states"], rtol=1e-5, atol=1e-6)
            assert torch.equal(states, results[0][name]["states"].flatten(1)), "ranks disagree"
            part = slice(int(got["first"]), int(got["first"]) + len(got["rows"]))
            torch.testing.assert_close(got["rows"].double(), want["rows"][part], rtol=1e-4, atol=1e-5)
        assert (want["states"][0, 0] - want["states"][-1, 0]).abs() > 1e-2, "the bias of the reference did not move"
