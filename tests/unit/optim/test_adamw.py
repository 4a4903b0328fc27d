"""AdamW of rows on any part of them against the algorithm in float64 and against `torch.optim.AdamW`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.optim.adamw import AdamW
from pipeline.optim.rows import Rows

STEPS, ROWS, DIM = 5, 7, 3
RATES = (0.1, 0.02, 0.3, 0.1, 0.05)
KEYS: dict[str, Any] = {"weight_decay": 0.3, "beta1": 0.8, "beta2": 0.99, "eps": 1e-3}


def adamw(**keys: Any) -> AdamW:
    return AdamW(steps=STEPS, learning_rate=1.0, **KEYS | keys)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows, and a gradient for every step; the first is tiny, where ε and the count matter most."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, DIM, generator=generator)
    grads = torch.randn(STEPS, ROWS, DIM, generator=generator)
    grads[0] *= 1e-3
    return weight, grads


def by_the_paper(takes_part: list[list[int]]) -> torch.Tensor:
    """Algorithm 2 number by number; a row takes part in the steps that list it, and counts those alone."""
    weight, grads = (tensor.double().tolist() for tensor in inputs())
    decay, beta1, beta2, eps = KEYS.values()
    mean, square = ([[0.0] * DIM for _ in range(ROWS)] for _ in range(2))
    count = [0] * ROWS
    for step, rows in enumerate(takes_part):
        for row in rows:
            count[row] += 1
            for column in range(DIM):
                g = grads[step][row][column]
                mean[row][column] = beta1 * mean[row][column] + (1 - beta1) * g
                square[row][column] = beta2 * square[row][column] + (1 - beta2) * g * g
                first = mean[row][column] / (1 - beta1 ** count[row])
                second = square[row][column] / (1 - beta2 ** count[row])
                weight[row][column] *= 1 - RATES[step] * decay
                weight[row][column] -= RATES[step] * first / (second**0.5 + eps)
    return torch.tensor(weight, dtype=torch.float64)


PARTS = [[0, 1, 2, 3, 4, 5, 6], [1, 2, 3], [0, 6], [2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-13), (torch.float32, 1e-6)], ids=str)
def test_rows_that_take_part_move_by_the_paper_and_no_other(dtype: torch.dtype, precision: float) -> None:
    weight, grads = (tensor.to(dtype) for tensor in inputs())
    optimizer = Rows(weight, adamw())
    for step, rows in enumerate(PARTS):
        part = slice(rows[0], rows[-1] + 1) if step % 2 else torch.tensor(rows)
        if step == 3:
            part = torch.tensor(rows[::-1])
        optimizer.update(part, grads[step][part], RATES[step])
    torch.testing.assert_close(weight.double(), by_the_paper(PARTS), rtol=0, atol=precision)
    assert optimizer.slots["count"].tolist() == [sum(row in rows for rows in PARTS) for row in range(ROWS)]


def test_all_rows_together_are_torchs_adamw() -> None:
    weight, grads = inputs()
    theirs = nn.Parameter(weight.clone())
    reference = torch.optim.AdamW([theirs], betas=(0.8, 0.99), eps=1e-3, weight_decay=0.3)
    optimizer = Rows(weight, adamw())
    for grad, rate in zip(grads, RATES, strict=True):
        reference.param_groups[0]["lr"], theirs.grad = rate, grad.clone()
        reference.step()
        optimizer.update(slice(0, ROWS), grad.clone(), rate)
    torch.testing.assert_close(weight, theirs.detach(), rtol=1e-5, atol=1e-6)
    for slot in adamw().slots[:2]:
        torch.testing.assert_close(optimizer.slots[slot.name], reference.state[theirs][slot.torch_key])


@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.9, 0.999)])
def test_a_step_is_the_sign_of_a_gradient_that_stays(betas: tuple[float, float]) -> None:
    """Whatever is remembered: in float32, 1 - 0.999 is off by 1e-5, and the step must not be."""
    weight, grads = inputs()
    moved = torch.zeros_like(weight)
    optimizer = Rows(moved, adamw(beta1=betas[0], beta2=betas[1], weight_decay=0.0, eps=1e-12))
    for count in (1, 2):
        optimizer.update(slice(0, ROWS), grads[1].clone(), 1.0)
        torch.testing.assert_close(moved, -count * grads[1].sign(), rtol=2e-6, atol=0)


def test_a_dropped_step_is_read_on_the_device_and_leaves_every_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, grads = inputs()
    plain = Rows(weight.clone(), adamw())
    for grad, rate in zip(grads, RATES, strict=True):
        plain.update(slice(0, ROWS), grad.clone(), rate)
    monkeypatch.setattr(AdamW, "fused_on", {"cpu"})  # torch has the kernel for the CPU as well
    rows, backbone = weight.clone(), nn.Linear(DIM, ROWS, bias=False)
    backbone.load_state_dict({"weight": weight.clone()})
    fused, optimizer = Rows(rows, adamw()), adamw().for_backbone([{"params": [backbone.weight]}])
    optimizer.param_groups[0]["weight_decay"] = KEYS["weight_decay"]
    optimizer.state[backbone.weight].update({slot.torch_key: slot.zeros_for(backbone.weight) for slot in adamw().slots})
    bad = torch.full((ROWS, DIM), torch.nan)
    for grad, rate in zip([bad, grads[0], bad, *grads[1:]], [0.7, RATES[0], 0.7, *RATES[1:]], strict=True):
        dropped, before = grad.isnan().any().float(), [rows.clone(), *(s.clone() for s in fused.slots.values())]
        fused.update(slice(0, ROWS), grad.clone(), rate, dropped)
        now = [rows, *fused.slots.values()]
        assert all(map(torch.equal, now, before)) == bool(dropped)
        optimizer.param_groups[0]["lr"] = rate
        backbone.weight.grad, optimizer.found_inf = grad.clone(), dropped  # type: ignore[attr-defined]
        optimizer.step()
    torch.testing.assert_close(rows, by_the_paper([list(range(ROWS))] * STEPS).float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(backbone.weight.detach(), rows, rtol=1e-5, atol=1e-6)
    assert float(optimizer.state[backbone.weight]["step"]) == STEPS
