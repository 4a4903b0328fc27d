"""A person who does not exist: shape, skin, brows, iris, hair and beard, from a seed and a number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.blending import moved
from pipeline.rendering.draws import Draws
from pipeline.rendering.model import ANCESTRIES, SEXES, Model, Vectors


@dataclass(frozen=True, eq=False)
class Person:
    """What all photographs of one person share."""

    seed: int
    number: int
    attributes: dict[str, str | float]
    shape: Vectors  # [V, 3] of the neutral face
    ancestry: str  # whose expressions the person has
    skin: tuple[float, float, float]  # linear RGB


def person(model: Model, seed: int, number: int) -> Person:
    """Person `number` of a seed: the same on every machine, whoever else was drawn."""
    draws = Draws("who", seed, number)
    sex = draws.choice(SEXES)
    age = 18 + 57 * draws.uniform() * draws.uniform()
    shares = _ancestry(draws)
    weight = max(-1.0, min(1.0, draws.normal(0.0, 0.5)))
    main = max(ANCESTRIES, key=lambda name: shares[name])
    shape = _shape(model, sex, (age - 18) / 57, shares, weight, Draws("shape", seed, number))
    tone = sum(shares[name] * value for name, value in zip(ANCESTRIES, (0.10, 0.42, 0.50), strict=True))
    light = max(0.04, tone * (1 + draws.normal(0, 0.2)))
    attributes: dict[str, str | float] = {"ancestry": main, "sex": sex, "age": round(age, 1)}
    return Person(seed, number, attributes, shape, main, (light, light * 0.72, light * 0.56))


def _ancestry(draws: Draws) -> dict[str, float]:
    """Shares of the three ancestries, mostly of one."""
    parts = [draws.uniform() for _ in ANCESTRIES]
    parts = [part * part * part * part + 0.01 for part in parts]
    return {name: part / sum(parts) for name, part in zip(ANCESTRIES, parts, strict=True)}


def _shape(model: Model, sex: str, old: float, shares: dict[str, float], weight: float, draws: Draws) -> Vectors:
    """[V, 3] the neutral face."""
    targets: list[Vectors] = []
    weights: list[float] = []
    heavy = "maxweight" if weight > 0 else "minweight"
    for age, part in (("young", 1 - old), ("old", old)):
        for name, share in shares.items():
            targets.append(model.macros[f"{name}-{sex}-{age}"])
            weights.append(part * share)
        for kind, share in (("averageweight", 1 - abs(weight)), (heavy, abs(weight))):
            targets.append(model.macros[f"universal-{sex}-{age}-averagemuscle-{kind}"])
            weights.append(part * share)
    base = moved(model.rest, np.stack(targets), np.array(weights, np.float32))
    amounts = np.clip(0.5 * draws.normals(len(model.axes)), -1, 1)
    return moved(base, model.shapes, both_directions(amounts))


def both_directions(amounts: NDArray[np.float64]) -> NDArray[np.float32]:
    """[2 A] weights of `Model.shapes` for amounts [A] from -1 to 1."""
    return np.stack([np.maximum(-amounts, 0), np.maximum(amounts, 0)], 1).reshape(-1).astype(np.float32)
