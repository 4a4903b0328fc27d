"""A dense float64 classifier written from the papers' equations: all logits, one process, no streaming."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import torch

from pipeline.hashing import hash64
from pipeline.head.margins import Margin


def dense_loss(
    x_GD: torch.Tensor,
    weight_CD: torch.Tensor,
    labels_G: torch.Tensor,
    margin: Margin,
    lambda_: float,
    state: Mapping[str, float] | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Mean cross-entropy over the samples of the global batch that have a label (not -1); 0 if none has.

    `state` is that of the margin before this batch, if it is not the first; `seed` decides what it draws at step 0.
    """
    labelled = [(sample, label) for sample, label in enumerate(labels_G.tolist()) if label >= 0]
    if not labelled:
        return x_GD.sum() * 0
    keys = margin.model_dump()
    now = dense_state(x_GD, weight_CD, labels_G, margin, state)
    losses = []
    for sample, label in labelled:
        if "elasticface" in keys["name"]:
            draw = int(hash64(seed, 0, 1, sample)[0] >> 11) / 2**53
            now = {"drawn": NormalDist().inv_cdf(draw)}
        losses.append(_sample_loss(x_GD[sample], weight_CD, label, keys, lambda_, now))
    return torch.stack(losses).mean()


def dense_state(
    x_GD: torch.Tensor,
    weight_CD: torch.Tensor,
    labels_G: torch.Tensor,
    margin: Margin,
    state: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """What the papers' running means are after this batch, of which at least one sample has a label."""
    keys = margin.model_dump()
    pairs = [
        (x.detach(), weight_CD[label].detach()) for x, label in zip(x_GD, labels_G.tolist(), strict=True) if label >= 0
    ]
    norms = [min(max(_length(x), 1e-3), 100.0) for x, _ in pairs]
    if margin.name == "adaface":
        before = state or {"mean": 20.0, "deviation": 100.0}
        rate, mean = keys["rate"], sum(norms) / len(norms)
        deviation = before["deviation"]
        if len(norms) > 1:
            spread = math.sqrt(sum((norm - mean) ** 2 for norm in norms) / (len(norms) - 1))
            deviation = rate * spread + (1 - rate) * deviation
        return {"mean": rate * mean + (1 - rate) * before["mean"], "deviation": deviation}
    if margin.name == "curricularface":
        cosines = [float(x @ row) / (_length(x) * _length(row)) for x, row in pairs]
        return {"t": keys["rate"] * sum(cosines) / len(cosines) + (1 - keys["rate"]) * (state or {"t": 0.0})["t"]}
    return {}


def _length(x: torch.Tensor) -> float:
    return x.square().sum().sqrt().item()


def _sample_loss(
    x: torch.Tensor,
    weight_CD: torch.Tensor,
    label: int,
    keys: dict[str, Any],
    lambda_: float,
    state: dict[str, float],
) -> torch.Tensor:
    name, norm = keys["name"], x.square().sum().sqrt()
    if name in {"sphereface2", "uniface"}:
        others = torch.arange(len(weight_CD)) != label
        # the head keeps it in float32
        bias = torch.tensor(state.get("bias", initial_bias(keys, len(weight_CD)))).to(x.dtype)
        return binary_loss((weight_CD @ x) / (weight_CD.norm(dim=1) * norm), ~others, bias, keys)
    if name == "softmax":
        logits = weight_CD @ x
    else:
        unit_CD = weight_CD / weight_CD.square().sum(1, keepdim=True).sqrt()
        cosines = (unit_CD @ (x / norm)).clamp(-1 + 1e-15, 1 - 1e-15)
        keeps = name in {"modified_softmax", "a_softmax"} or keys.get("feature_norm", "hard") != "hard"
        length = norm if keeps else keys["scale"]
        target = _target(torch.arccos(cosines[label]), norm, keys, lambda_, state)
        rest = cosines
        if name == "sphereface_r_v2":
            rest = torch.cos(torch.arccos(cosines) / keys["m"])
            if keys["detached"]:
                rest = cosines + (rest - cosines).detach()
        if name == "curricularface":
            hard = cosines > target
            rest = torch.where(hard, cosines * (state["t"] + cosines), cosines)
        if keys.get("filter"):
            rest = torch.where(cosines > keys["filter"], torch.zeros_like(cosines), cosines)
        if keys.get("detached"):
            target = cosines[label] + (target - cosines[label]).detach()
        logits = length * torch.cat([rest[:label], target[None], rest[label + 1 :]])
    top = logits.max()
    loss = top + (logits - top).exp().sum().log() - logits[label]
    if keys.get("feature_norm") == "soft":
        loss = loss + keys["softness"] * (norm - keys["scale"]).abs()
    if name == "magface":
        loss = loss + keys["penalty_weight"] * (
            1 / _held_norm(norm, keys) + _held_norm(norm, keys) / keys["norm_high"] ** 2
        )
    return loss


def binary_loss(
    cosines_C: torch.Tensor, is_target_C: torch.Tensor, bias: torch.Tensor, keys: dict[str, Any]
) -> torch.Tensor:
    """SphereFace2's and UniFace's loss of a sample."""
    similarity_C, r, m = cosines_C, keys["scale"], keys["margin"]
    if keys["name"] == "uniface":
        z_C = r * torch.where(is_target_C, cosines_C - m, cosines_C) + bias
        positive, negative = 1.0, keys["balance"]
    else:
        similarity_C = 2 * ((cosines_C + 1) / 2) ** keys["exponent"] - 1
        if keys["detached"]:
            similarity_C = cosines_C + (similarity_C - cosines_C).detach()
        z_C = r * torch.where(is_target_C, similarity_C - m, similarity_C + m) + bias
        positive, negative = (keys["loss_weight"] / r * w for w in (keys["balance"], 1 - keys["balance"]))
    losses_C = torch.where(is_target_C, positive * (1 + (-z_C).exp()).log(), negative * (1 + z_C.exp()).log())
    return losses_C.sum()


def initial_bias(keys: dict[str, Any], classes: int) -> float:
    """ln 1/(10 C); or, by bisection, where the gradients of the positives and the negatives cancel at cosines of 0."""
    if keys["name"] == "uniface":
        return -math.log(10 * classes)
    low, high, of_target = -1000.0, 1000.0, torch.arange(classes) == 0
    for _ in range(200):
        bias = torch.tensor((low + high) / 2, dtype=torch.float64, requires_grad=True)
        binary_loss(torch.zeros(classes, dtype=torch.float64), of_target, bias, keys).backward()
        assert bias.grad is not None
        low, high = (low, bias.item()) if bias.grad > 0 else (bias.item(), high)
    return low


def _held_norm(norm: torch.Tensor, keys: dict[str, Any]) -> torch.Tensor:
    return norm.clamp(keys["norm_low"], keys["norm_high"])


def _target(
    theta: torch.Tensor, norm: torch.Tensor, keys: dict[str, Any], lambda_: float, state: dict[str, float]
) -> torch.Tensor:
    """The target logit over its length, by the table of `pipeline.head.margins`."""
    m, a, b = keys.get("m", math.nan), keys.get("angle", math.nan), keys.get("cosine", math.nan)

    def a_softmax() -> torch.Tensor:
        return (lambda_ * torch.cos(theta) + _extended(m * theta, m * math.pi)) / (1 + lambda_)

    def adaface() -> torch.Tensor:
        place = (min(max(norm.item(), 1e-3), 100.0) - state["mean"]) / (state["deviation"] + 1e-3)
        quality = min(max(keys["concentration"] * place, -1.0), 1.0)
        return torch.cos((theta - keys["margin"] * quality).clamp(0, math.pi)) - keys["margin"] * (1 + quality)

    def magface() -> torch.Tensor:
        share = (_held_norm(norm, keys) - keys["norm_low"]) / (keys["norm_high"] - keys["norm_low"])
        margin = keys["margin_low"] + share * (keys["margin_high"] - keys["margin_low"])
        return _extended(theta + margin, math.pi + margin.item())

    def elasticface_arc() -> torch.Tensor:
        drawn = a + keys["deviation"] * state["drawn"]
        return _extended(theta + drawn, math.pi + drawn)

    by_name = {
        "modified_softmax": lambda: torch.cos(theta),
        "a_softmax": a_softmax,
        "a_softmax_normalised": a_softmax,
        "sphereface_r_v1": lambda: torch.cos(torch.minimum(m * theta, torch.tensor(math.pi, dtype=theta.dtype))),
        "sphereface_r_v2": lambda: torch.cos(theta),
        "cosface": lambda: torch.cos(theta) - b,
        "arcface": lambda: _extended(theta + a, math.pi + a),
        "combined": lambda: _extended(m * theta + a, m * math.pi + a) - b,
        "adaface": adaface,
        "magface": magface,
        "elasticface_arc": elasticface_arc,
        "elasticface_cos": lambda: torch.cos(theta) - b - keys["deviation"] * state["drawn"],
        "curricularface": lambda: _extended(theta + a, math.pi + a),
    }
    return by_name[keys["name"]]()


def _extended(phi: torch.Tensor, largest: float) -> torch.Tensor:
    """(-1)^k cos φ - 2k with k = ⌊φ/π⌋, the largest φ counted to the interval before it."""
    k = min(int(phi.item() / math.pi), math.ceil(largest / math.pi - 1e-12) - 1)
    return (-1) ** k * torch.cos(phi) - 2 * k
