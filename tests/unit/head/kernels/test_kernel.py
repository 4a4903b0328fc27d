"""What takes the rows' gradient: a sum over micro-batches whose memory stays, of all rows or of the sampled ones."""

from __future__ import annotations

import torch

from pipeline.head.kernels import BlockLoop, RowGradient, Scoring, Sink
from pipeline.optim.rows import Rows
from pipeline.optim.sgd import SGD


def test_a_gradient_overwrites_what_was_used_and_adds_to_what_was_not() -> None:
    weight = torch.nn.Parameter(torch.zeros(5, 2))
    gradient = RowGradient(Rows(weight, SGD(steps=1, learning_rate=1.0)))
    assert gradient.held_bytes == 0
    for expected in (1.0, 2.0):
        gradient.take(0, torch.ones(3, 2))
        gradient.take(3, torch.ones(2, 2))
        assert gradient.holds
        assert weight.grad is not None and (weight.grad == expected).all()
    gradient.forget()
    gradient.take(0, torch.ones(5, 2))
    assert (gradient.memory() == 1).all()
    assert gradient.held_bytes == weight.nbytes


def test_the_memory_of_sampled_rows_stays_where_it_is_until_there_are_more() -> None:
    weight = torch.nn.Parameter(torch.zeros(100, 2))
    gradient = RowGradient(Rows(weight, SGD(steps=1, learning_rate=1.0)))
    gradient.part = 32
    place = gradient.memory().data_ptr()
    for rows in (30, 33, 34):
        gradient.part = rows
        assert gradient.memory().shape == (rows, 2)
        assert gradient.memory().data_ptr() == place
    gradient.part = 60
    assert gradient.memory().shape == (60, 2)
    assert weight.grad is None


def test_sampled_rows_are_those_rows_alone_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    features, weight = torch.randn(4, 6, generator=generator), torch.randn(11, 6, generator=generator)
    rows, target = torch.tensor([0, 3, 4, 8, 10]), torch.tensor([0, -1, 4, 2])
    scoring = Scoring(normalise_rows=True, block=2)
    found = []
    for given, numbers in ((weight, rows), (weight[rows], None)):
        x, taken = features.clone().requires_grad_(), torch.zeros(5, 6)
        sink = Sink(lambda first, grad, taken=taken: taken[first : first + len(grad)].copy_(grad))  # type: ignore[misc]
        results = BlockLoop().nontarget_logsumexp(x, given, target, scoring, sink, numbers)
        torch.autograd.backward(results, [torch.ones(4), torch.ones(4, 6)])
        assert x.grad is not None
        found.append((*(result.detach() for result in results), x.grad, taken))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
