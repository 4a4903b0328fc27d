"""What a module does, the head does with rows, momentum and state; and what a trainer around it may do wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch import nn

from pipeline.head import HeadOptions, ShardedHead, law, of_classes
from pipeline.head.kernels import Kernel
from pipeline.head.kernels import choose as choose_kernel
from pipeline.head.kernels.blocks import BlockLoop
from pipeline.head.margins import MARGINS, Margin
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.margins.softmax import ModifiedSoftmax
from pipeline.head.rows import initial_rows
from pipeline.head.turns import needs_own_optimizer
from pipeline.optim.adamw import AdamW
from pipeline.optim.optimizer import Optimizer
from pipeline.optim.sgd import SGD

C, D, B = 13, 4, 6
LABELS_B = torch.tensor([0, 3, 12, 7, 7, -1])
RATE = 0.1


def batch(step: int = 0) -> torch.Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(step)).requires_grad_()


def sgd(**keys: Any) -> SGD:
    return SGD(**{"steps": 10, "learning_rate": RATE, "weight_decay": 0.01, **keys})


def head_of(margin: Margin | str = "a_softmax", optimizer: Optimizer | None = None, **options: Any) -> ShardedHead:
    margin = MARGINS.parse(margin) if isinstance(margin, str) else margin
    return ShardedHead(C, D, margin, optimizer=optimizer, seed=1, options=HeadOptions(**options))


def train(head: ShardedHead, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss = head(batch(step).to(head.weight_SD.dtype), LABELS_B).loss
        loss.backward()
        head.update()
        losses.append(loss.item())
    return losses


def everything(head: ShardedHead) -> dict[str, torch.Tensor]:
    return {"rows": head.weight_SD.detach(), **head.slots, **head.state, "step": torch.tensor(head.step)}


def assert_same(one: ShardedHead, other: ShardedHead) -> None:
    a, b = everything(one), everything(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Momentum; momenta and a count for each row; a running mean; a learned bias with its own momentum.
KINDS: dict[str, tuple[str, Optimizer]] = {
    "sgd": ("a_softmax", sgd()),
    "adamw": ("arcface", AdamW(steps=10, learning_rate=RATE)),
    "state": ("curricularface", sgd()),
    "bias": ("sphereface2", sgd()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_and_a_load_continue_bit_for_bit(kind: str) -> None:
    head = head_of(*KINDS[kind])
    train(head, range(3))
    copied, loaded = copy.deepcopy(head), head_of(*KINDS[kind])
    before = {name: value.clone() for name, value in everything(head).items()}
    loaded.load_state_dict(head.state_dict())
    want = train(head, range(3, 6))
    assert all(torch.equal(value, before[name]) for name, value in everything(copied).items()), "a copy is apart"
    for other in (copied, loaded):
        assert train(other, range(3, 6)) == want
        assert_same(other, head)


@pytest.mark.parametrize("kind", KINDS)
def test_meta_costs_nothing_and_begins_as_any_other(kind: str) -> None:
    margin, optimizer = KINDS[kind]
    with torch.device("meta"):
        inside = head_of(margin, optimizer)
    given = ShardedHead(C, D, MARGINS.parse(margin), optimizer=optimizer, seed=1, device="meta")
    want = head_of(margin, optimizer)
    for head in (inside, given):
        assert head.weight_SD.is_meta and all(slot.is_meta for slot in head.slots.values())
        head.to_empty(device="cpu")
        head.reset_parameters()
        assert_same(head, want)
    train(inside, range(2))
    inside.reset_parameters()
    assert_same(inside, want)


def test_a_type_is_that_of_rows_and_momentum_and_an_optimizer_of_torchs_keeps_its_parameter() -> None:
    head = head_of(optimizer=sgd(), unit_rows=True)
    weight = head.weight_SD
    nn.Sequential(head).double()
    train(head, range(2))
    assert head.weight_SD is weight and weight.dtype == head.slots["momentum"].dtype == torch.float64
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(C, dtype=torch.float64))


def test_what_was_made_for_the_tensors_before_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Kernel] = []

    def choose(*of: Any, real: Callable[..., Kernel] = choose_kernel) -> Kernel:
        made.append(real(*of))
        return made[-1]

    monkeypatch.setattr("pipeline.head.head.choose", choose)
    head = head_of(optimizer=sgd())
    train(head, range(2))
    assert len(made) == 1
    copied = copy.deepcopy(head)
    train(copied, range(2, 3))
    assert len(made) == 2, "a copy has rows of its own"
    for number, change in enumerate((lambda: head.load_state_dict(head.state_dict()), head.double), start=3):
        change()
        train(head, range(2, 3))
        assert len(made) == number


def test_loaded_rows_have_length_one_if_they_are_to_have_it() -> None:
    head = head_of(optimizer=sgd(), unit_rows=True)
    head.load_state_dict(head.state_dict() | {"rows.weight_SD": 7 * head.weight_SD.detach()})
    torch.testing.assert_close(head.weight_SD, head_of(unit_rows=True).weight_SD, rtol=1e-6, atol=1e-6)


def test_a_copy_has_the_kernel_that_it_was_given_in_common_with_the_original() -> None:
    class Uncopied(BlockLoop):
        def __deepcopy__(self, memo: dict[int, Any]) -> Uncopied:
            raise AssertionError

    head = head_of(optimizer=sgd(), kernel=Uncopied())
    train(head, range(1))
    assert copy.deepcopy(head).options is head.options


def test_around_it_there_are_no_parameters_but_a_state() -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(3, D), "head": head_of("sphereface2", sgd())})
    assert [name for name, _ in model.named_parameters()] == ["backbone.weight", "backbone.bias"]
    keys = {key for key in model.state_dict() if key.startswith("head.")}
    state = {"head.margin_state.learned.bias", "head.margin_state.learned.bias_momentum"}
    assert keys == {"head.rows.weight_SD", "head.rows.momentum", "head.classes", "head.step", *state}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "head.rows.momentum"'):
        model.load_state_dict({key: v for key, v in model.state_dict().items() if key != "head.rows.momentum"})
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "head.step"'):
        model.load_state_dict({key: v for key, v in model.state_dict().items() if key != "head.step"})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "head.more"'):
        model.load_state_dict(model.state_dict() | {"head.more": torch.zeros(1)})


# --- other numbers of ranks ---


def states(cuts: list[int]) -> list[dict[str, torch.Tensor]]:
    """Of a trained head, cut as ranks would have it."""
    head = head_of("curricularface", sgd())
    train(head, range(2))
    whole = head.state_dict()
    rows = [key for key in whole if key.startswith("rows.")]
    return [
        whole | {key: whole[key][a:b] for key in rows} | {"classes": torch.tensor([a, b, C])} for a, b in pairwise(cuts)
    ]


def test_the_states_of_any_ranks_fit_any_others() -> None:
    (whole,) = states([0, C])
    three = states([0, 5, 9, C])
    for cuts in ([0, 7, C], [0, 4, 8, 10, C], [0, C]):
        for want, (start, stop) in zip(states(cuts), pairwise(cuts), strict=True):
            for given in (three, three[::-1], [*three, *three], [whole]):
                got = of_classes(given, range(start, stop))
                assert got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in got)
    head = head_of("curricularface", sgd())
    head.load_state_dict(of_classes(three, head.classes))
    assert head.step == 2


def test_states_that_are_not_those_of_one_head_are_refused() -> None:
    three = states([0, 5, 9, C])
    with pytest.raises(ValueError, match=r"got no row of class 5, wanted those of classes 3 to 12"):
        of_classes([three[0], three[2]], range(3, C))
    with pytest.raises(ValueError, match=r"got heads of \[13\] classes, wanted one head that has class 13"):
        of_classes(three, range(9, 14))
    with pytest.raises(ValueError, match=r"got those of steps \[2, 9\], wanted one step"):
        of_classes([three[0], three[1] | {"step": torch.tensor(9)}], range(6))
    with pytest.raises(ValueError, match=r"got heads of \[13, 14\] classes, wanted one head that has class 5"):
        of_classes([three[0], three[1] | {"classes": torch.tensor([5, 9, 14])}], range(6))
    with pytest.raises(RuntimeError, match=r"classes: got 5 to 8 of 13, wanted 0 to 12 of 13: pipeline"):
        head_of("curricularface", sgd()).load_state_dict(three[1])
    (whole,) = states([0, C])
    head = head_of("curricularface", sgd())
    with pytest.raises(RuntimeError, match=r"classes: got 0 to 12 of 14, wanted 0 to 12 of 13"):
        head.load_state_dict(whole | {"classes": torch.tensor([0, C, 14])})
    assert head.step == 0 and torch.equal(head.weight_SD, head_of().weight_SD), "nothing of it was taken"


# --- trainers around it ---


@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_optimizer_of_torchs_may_have_the_rows(set_to_none: bool) -> None:
    ours, theirs = head_of(optimizer=sgd()), head_of(accumulation=2)
    foreign = torch.optim.SGD([theirs.weight_SD], lr=RATE, momentum=0.9, weight_decay=0.01)
    for step in range(4):
        foreign.zero_grad(set_to_none=set_to_none)
        for _ in range(2):  # two passes add up
            (theirs(batch(step), LABELS_B, step=step).loss / 2).backward()
        foreign.step()
    train(ours, range(4))
    torch.testing.assert_close(theirs.weight_SD, ours.weight_SD, rtol=0, atol=1e-6)


def second_pass(head: ShardedHead) -> None:
    for _ in range(2):
        head(batch(), LABELS_B, step=0).loss.backward()


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (head_of, "an optimizer of the head's own, or head.weight_SD among the parameters of yours"),
        (lambda: head_of(optimizer=sgd()), r"update\(\) or drop\(\) after 1 \(HeadOptions.accumulation\)"),
        (lambda: head_of(sample_rate=0.5), "an optimizer of the head's own, which sample_rate 0.5 needs"),
        (lambda: head_of("curricularface"), "which the state of curricularface needs"),
        (lambda: head_of("uniface"), "which the state of uniface needs"),
        (lambda: head_of(unit_rows=True), "which unit_rows needs"),
    ],
)
def test_a_step_that_nothing_ended_is_refused(head: Any, wanted: str) -> None:
    with pytest.raises(RuntimeError, match=f"head: got 2 passes without an update of the rows, wanted .*{wanted}"):
        second_pass(head())


def test_a_step_that_an_optimizer_of_torchs_left_out_is_ended() -> None:
    head = head_of()
    foreign = torch.optim.SGD([head.weight_SD], lr=RATE)
    for _ in range(2):
        head(batch(), LABELS_B, step=0).loss.backward()
        foreign.zero_grad()
    assert needs_own_optimizer(head.margin, head.options, cast(Any, "other ranks")) == ["replicas"]


def test_an_optimizer_of_torchs_that_knows_nothing_of_sampling_is_refused() -> None:
    head = head_of("arcface", sample_rate=0.5)
    foreign = torch.optim.SGD([head.weight_SD], lr=RATE)
    head(batch(), LABELS_B, step=0).loss.backward()
    foreign.step()
    foreign.zero_grad()
    with pytest.raises(RuntimeError, match=r"sample_rate 0\.5 needs"):
        head(batch(), LABELS_B, step=1)


def test_updates_that_cannot_be_are_refused() -> None:
    with pytest.raises(RuntimeError, match="update: got a head without an optimizer"):
        head_of().update(RATE)
    with pytest.raises(RuntimeError, match="update: got no gradient of the rows, wanted a backward pass before"):
        head_of(optimizer=sgd()).update(RATE)
    with pytest.raises(ValueError, match="step: got None, wanted its number"):
        head_of()(batch(), LABELS_B)
    with pytest.raises(ValueError, match=r"accumulation: got 2 with sample_rate 0\.5, wanted 1"):
        HeadOptions(accumulation=2, sample_rate=0.5)
    with pytest.raises(ValueError, match=r"accumulation: got 2 with fused_update, wanted 1"):
        HeadOptions(accumulation=2, fused_update=True)
    with pytest.raises(ValueError, match="fused_update: got true without an optimizer"):
        head_of(fused_update=True)
    with pytest.raises(ValueError, match="backbone_gradient: got 'mean', wanted 'averaged' or 'summed'"):
        ShardedHead(C, D, ASoftmax(), backbone_gradient="mean")  # type: ignore[arg-type]


def test_a_trainer_that_averages_and_one_that_sums_end_with_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of three ranks, of whose gradients the sum in a group, and of these the mean, is wanted."""
    sizes = {"a group": 3, "its replicas": 2}
    monkeypatch.setattr(law, "num_ranks", sizes.__getitem__)
    group, replicas = cast(Any, "a group"), cast(Any, "its replicas")
    parts = torch.arange(1.0, 7.0)
    wanted = (parts[:3].sum() + parts[3:].sum()) / 2
    for does, gives in (("averaged", parts.mean()), ("summed", parts.sum())):
        assert gives * law.factor_of(cast(law.BackboneGradient, does), group, replicas) == wanted
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.ones(2, dtype=dtype, requires_grad=True)
        assert torch.equal(law.scale_gradient(values, 3.0), values)
        (grad,) = torch.autograd.grad(law.scale_gradient(values, 3.0).sum(), values)
        assert grad.dtype == dtype and grad.tolist() == [3, 3]


def test_labels_beyond_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="labels: got 13, wanted numbers below 13 classes, or -1"):
        head_of()(batch(), torch.tensor([0, 13, 2, 3, 4, 5]), step=0)


def test_lambda_and_rate_follow_the_heads_own_count() -> None:
    optimizer = sgd(warmup_steps=3, milestones=(4,))
    own, told = head_of(optimizer=optimizer, fused_update=True), head_of(optimizer=optimizer)
    losses = train(own, range(6))
    for step, loss in enumerate(losses):
        rate = optimizer.learning_rate_at(step, len(LABELS_B))
        output = told(batch(step), LABELS_B, ASoftmax().lambda_at(step), step=step, learning_rate=rate)
        output.loss.backward()
        told.update(rate)
        assert output.loss.item() == loss
    assert_same(own, told)


@pytest.mark.parametrize("kind", ["state", "bias"])
@pytest.mark.parametrize("sample_rate", [1.0, 0.5])
def test_an_evaluation_between_passes_changes_nothing(kind: str, sample_rate: float) -> None:
    margin, optimizer = KINDS[kind]
    plain, looked_at = (head_of(margin, optimizer, sample_rate=sample_rate) for _ in range(2))
    for step in range(2):
        for head in (plain, looked_at):
            loss = head(batch(step), LABELS_B).loss
            with torch.no_grad():
                if head is looked_at:
                    head(3 * batch(9), LABELS_B)
            loss.backward()
            head.update()
    assert_same(looked_at, plain)


def test_without_gradients_all_classes_are_scored() -> None:
    exact, sampled = head_of(ModifiedSoftmax(), sgd()), head_of(ModifiedSoftmax(), sgd(), sample_rate=0.3)
    with torch.no_grad():
        assert sampled(batch(), LABELS_B).loss == exact(batch(), LABELS_B).loss
    assert sampled(batch(), LABELS_B).loss != exact(batch(), LABELS_B).loss


def test_the_type_of_products_is_the_heads_and_not_the_trainers() -> None:
    head, again = head_of(optimizer=sgd()), head_of(optimizer=sgd())
    with torch.autocast("cpu", torch.bfloat16):
        loss = head(batch(), LABELS_B).loss
    want = again(batch(), LABELS_B).loss
    loss.backward()
    want.backward()
    assert loss == want
    assert head.row_gradient is not None and again.row_gradient is not None
    assert torch.equal(head.row_gradient, again.row_gradient)


def test_rows_are_those_of_seed_and_class() -> None:
    assert torch.equal(head_of().weight_SD, initial_rows(range(C), D, seed=1))
