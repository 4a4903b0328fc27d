"""Every margin of the table: true gradients, angles that are its own, and keys that it reads."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipeline.head.margins import MARGINS, Margin, State, Target
from pipeline.head.margins.a_softmax import ASoftmax
from pipeline.head.margins.arcface import ArcFace, Combined, CosFace
from pipeline.head.margins.binary import BinaryMargin
from pipeline.head.margins.curricularface import CurricularFace
from pipeline.head.margins.elasticface import ElasticFaceArc, ElasticFaceCos
from pipeline.head.margins.magface import MagFace
from pipeline.head.margins.softmax import ModifiedSoftmax
from pipeline.head.margins.sphereface_r import SphereFaceR1
from tests.faces import ROOT

KEYS = {
    "softmax": set(),
    "modified_softmax": set(),
    "a_softmax": {"m", "detached", "gradient", "lambda_max", "lambda_min", "lambda_gamma", "lambda_power"},
    "a_softmax_normalised": {"scale", "m", "detached", "lambda_max", "lambda_min", "lambda_gamma", "lambda_power"},
    "sphereface_r_v1": {"scale", "m", "detached", "feature_norm", "softness"},
    "sphereface_r_v2": {"scale", "m", "detached"},
    "cosface": {"scale", "filter", "cosine"},
    "arcface": {"scale", "filter", "angle", "detached"},
    "combined": {"scale", "filter", "m", "angle", "cosine", "detached"},
    "adaface": {"scale", "margin", "concentration", "rate"},
    "curricularface": {"scale", "angle", "rate"},
    "elasticface_arc": {"scale", "angle", "deviation"},
    "elasticface_cos": {"scale", "cosine", "deviation"},
    "sphereface2": {"scale", "margin", "exponent", "balance", "loss_weight", "detached"},
    "uniface": {"scale", "margin", "balance"},
    "magface": {"scale", "norm_low", "norm_high", "margin_low", "margin_high", "penalty_weight"},
}
# Margins that depend on ‖x‖, some without a gradient: those that tests/distributed/test_head.py checks.
OF_QUALITY = {"adaface", "magface"}


def pairs(samples: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, rows = (torch.randn(samples, 7, dtype=torch.float64, generator=generator) for _ in range(2))
    return x.requires_grad_(), rows.requires_grad_()


def state_of(margin: Margin) -> State:
    """Before the first step, a learned bias included."""
    bias = {"bias": torch.tensor(margin.initial_bias(10))} if isinstance(margin, BinaryMargin) else {}
    return margin.initial_state() | bias


def test_the_table_is_whole_and_a_margin_has_only_the_keys_that_it_reads() -> None:
    assert {name: MARGINS[name].model_fields.keys() - {"name"} for name in KEYS} == KEYS
    assert set(KEYS) == {name for name in MARGINS if not name.startswith("toy_")}
    for name in KEYS:
        assert MARGINS.parse(name).name == name == MARGINS.parse({"name": name}).name


def test_the_documentation_has_a_row_of_every_loss_with_its_paper_and_its_cost() -> None:
    rows = re.findall(r"^\| (`.+)\|$", (ROOT / "docs" / "losses.md").read_text(), re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows if not row.startswith("`head.margin`")]
    assert sorted(name for row in cells for name in re.findall(r"`(\w+)`", row[0])) == sorted(KEYS)
    for names, paper, _, _, cost in cells:
        assert re.search(r"20\d\d", paper), names
        costs = re.findall(r"\d(?:\.\d\d)?", cost.partition(";")[0])
        assert len(costs) == names.count("`") // 2, f"{names}: {cost}"


@pytest.mark.parametrize("name", sorted(KEYS.keys() - OF_QUALITY))
@pytest.mark.parametrize("m", [1.0, 2.5, 3.0])
def test_gradients_of_target_logits(name: str, m: float) -> None:
    keys = {"m": m, "detached": False}
    margin = MARGINS.parse({"name": name} | {key: value for key, value in keys.items() if key in KEYS[name]})

    def logits(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return margin.target_logit(Target(x, rows), 5.0, state_of(margin))

    assert torch.autograd.gradcheck(logits, pairs())


@pytest.mark.parametrize("name", [name for name in KEYS if "detached" in KEYS[name] and name != "sphereface_r_v2"])
def test_a_detached_margin_moves_the_value_and_not_the_gradient(name: str) -> None:
    margin, detached = (MARGINS.parse({"name": name, "detached": detached}) for detached in (False, True))
    x, rows = pairs()
    want = margin.target_logit(Target(x, rows), 0.0, state_of(margin))
    got = detached.target_logit(Target(x, rows), 0.0, state_of(margin))
    torch.testing.assert_close(got, want)
    (grad,) = torch.autograd.grad(got.sum(), rows)
    length = Target(x, rows).embedding_norm_G.detach() if "scale" not in KEYS[name] else margin.model_dump()["scale"]
    (of_cosine,) = torch.autograd.grad((length * Target(x, rows).cosine_G).sum(), rows)
    torch.testing.assert_close(grad, of_cosine)


@pytest.mark.parametrize(
    ("margin", "wanted"),
    [
        (ModifiedSoftmax(), 1.2),
        (ASoftmax(m=3), 3.6),
        (SphereFaceR1(m=1.5), 1.8),
        (ArcFace(angle=0.3), 1.5),
        (Combined(m=2, angle=0.3), 2.7),
        (MagFace(margin_low=0.2), 1.4),
        (CurricularFace(angle=0.3), 1.5),
        (ElasticFaceArc(angle=0.3), 1.5),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_margins_angle_is_that_of_its_target_logit(margin: Margin, wanted: float) -> None:
    got = margin.margin_angle(torch.tensor(1.2, dtype=torch.float64))
    assert float(got) == pytest.approx(wanted)


def test_an_elastic_margin_is_the_plain_one_with_the_margin_that_is_drawn() -> None:
    x, rows = pairs()
    drawn_G = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    for elastic, plain in (
        (ElasticFaceArc(angle=0.3, deviation=0.1), lambda margin: ArcFace(angle=margin)),
        (ElasticFaceCos(cosine=0.3, deviation=0.1), lambda margin: CosFace(cosine=margin)),
    ):
        got = elastic.target_logit(Target(x, rows, drawn_G), None, {})
        for sample, number in enumerate(drawn_G.tolist()):
            wanted = plain(0.3 + 0.1 * number).target_logit(Target(x, rows), None, {})
            torch.testing.assert_close(got[sample], wanted[sample])
    assert {name for name in KEYS if MARGINS[name].draws} == {"elasticface_arc", "elasticface_cos"}


def test_only_a_softmax_has_a_lambda() -> None:
    for name in KEYS:
        margin = MARGINS.parse(name)
        has = name.startswith("a_softmax")
        assert (margin.lambda_at(3) is not None) == (margin.lambda_floor is not None) == has


def test_few_margins_have_state() -> None:
    assert {name for name in KEYS if MARGINS.parse(name).initial_state()} == {"adaface", "curricularface"}


def test_no_margin_reads_what_it_is_not_given() -> None:
    """x is scaled and rows are scaled: a cosine does not change, the logit of a kept norm grows with x alone."""
    x, rows = pairs()
    for name in KEYS.keys() - OF_QUALITY:
        margin, keys = MARGINS.parse(name), KEYS[name]
        once = margin.target_logit(Target(x, rows), 5.0, state_of(margin))
        twice = margin.target_logit(Target(2 * x, 3 * rows), 5.0, state_of(margin))
        factor = 6 if name == "softmax" else 1 if "scale" in keys else 2
        torch.testing.assert_close(twice, factor * once)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"m": 0.5}, "greater than or equal to 1"),
        ({"lambda_min": 30.0, "lambda_max": 20.0}, "lambda_min: got 30.0, wanted at most lambda_max 20.0"),
    ],
)
def test_impossible_margins_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ASoftmax(**keys)


def test_features_have_the_length_that_the_margin_says() -> None:
    x, _ = pairs()
    assert ASoftmax().features(x) is x
    torch.testing.assert_close(ArcFace(scale=30).features(x).norm(dim=1), torch.full((5,), 30.0, dtype=torch.float64))


def test_the_warp_of_sphereface_r_v2_is_the_cosine_of_a_part_of_the_angle() -> None:
    warp = MARGINS.parse({"name": "sphereface_r_v2", "m": 1.5}).warp
    assert warp is not None
    cosines = torch.linspace(-0.999, 0.999, 41, dtype=torch.float64, requires_grad=True)
    value = warp.value(cosines)
    want = [math.cos(math.acos(c) / 1.5) for c in cosines.tolist()]
    torch.testing.assert_close(value, torch.tensor(want, dtype=torch.float64))
    (slope,) = torch.autograd.grad(value.sum(), cosines)
    torch.testing.assert_close(warp.slope(cosines.detach()), slope)
    assert float(warp.slope(torch.ones(1, dtype=torch.float64))) == pytest.approx(1 / 1.5**2)


@pytest.mark.parametrize("name", ["cosface", "arcface", "combined"])
def test_a_filter_leaves_alone_what_is_nearer_than_it(name: str) -> None:
    assert MARGINS.parse(name).warp is None
    warp = MARGINS.parse({"name": name, "filter": 0.4}).warp
    assert warp is not None and warp.scale == 64
    cosines = torch.tensor([-0.9, 0.4, 0.41, 1.0], dtype=torch.float64)
    assert warp.value(cosines).tolist() == [-0.9, 0.4, 0, 0]
    assert warp.slope(cosines).tolist() == [1, 1, 0, 0]
