"""A person who does not exist: shape, skin, brows, iris, hair and beard, from a seed and a number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.blending import moved, vertex_normals
from pipeline.rendering.exact.draws import Draws
from pipeline.rendering.people.hair import Hairline, drawn_hairline, growth, locks_of, smooth
from pipeline.rendering.people.model import ANCESTRIES, SEXES, Model, Vectors
from pipeline.rendering.people.skin import Skin, painted, tone
from pipeline.rendering.people.strands import Locks
from pipeline.rendering.people.styles import COLOURS, Colour, Style, drawn_colour, drawn_style, mixed, varied

_OLDEST = 78.0

# How far shape axes go, by folder of targets; the rest of a person is in what these leave alike.
_SPREAD = {
    "nose": 0.52,
    "mouth": 0.42,
    "eyes": 0.46,
    "chin": 0.45,
    "cheek": 0.42,
    "eyebrows": 0.5,
    "ears": 0.5,
    "forehead": 0.38,
    "head": 0.30,
}

IRISES: dict[str, Colour] = {
    "dark brown": (0.05, 0.025, 0.012),
    "brown": (0.13, 0.06, 0.025),
    "hazel": (0.19, 0.12, 0.04),
    "green": (0.14, 0.19, 0.09),
    "blue": (0.13, 0.22, 0.34),
    "grey": (0.22, 0.25, 0.28),
}
_IRIS_SHARES = {
    "african": (8, 3, 0.2, 0.05, 0.05, 0.02),
    "asian": (7, 3, 0.2, 0.05, 0.05, 0.02),
    "caucasian": (2, 3, 1.5, 1, 3, 0.8),
}


@dataclass(frozen=True, eq=False)
class Worn:
    """A hairstyle on the person's head."""

    style: Style
    locks: Locks
    cap: NDArray[np.float32]  # [V] how thick the layer under the locks is, in decimetres
    capped: NDArray[np.int32]  # [C, 3] its faces


@dataclass(frozen=True, eq=False)
class Person:
    """What all photographs of one person share."""

    seed: int
    number: int
    attributes: dict[str, str | float]
    shape: Vectors  # [V, 3] of the neutral face
    ancestry: str  # whose expressions the person has
    skin: NDArray[np.float32]  # [ROWS, COLUMNS, 5] as `skin.painted`
    tone: Colour  # of the skin, for a hand
    hair: Colour
    iris: Colour
    iris_size: float  # cosine of its angle in the eyeball
    red: float  # how red the white of the eyes is
    oil: float  # how much the skin shines
    worn: tuple[Worn, ...]  # the usual hairstyle, and another
    glasses: str  # the frame of one who wears glasses; empty for others


def person(model: Model, seed: int, number: int) -> Person:
    """Person `number` of a seed: the same on every machine, whoever else was drawn."""
    draws = Draws("who", seed, number)
    sex = draws.choice(SEXES)
    share = draws.uniform()
    age = 18 + (_OLDEST - 18) * share * (0.5 + 0.5 * share)
    shares = _ancestry(draws)
    main = max(ANCESTRIES, key=lambda name: shares[name])
    weight = max(-1.0, min(1.0, draws.normal(0.05, 0.55)))
    old = (age - 18) / (_OLDEST - 18)
    shape = _shape(model, sex, old, shares, weight, Draws("shape", seed, number))
    looks = Draws("looks", seed, number)
    darkness = sum(shares[name] * value for name, value in zip(ANCESTRIES, (0.74, 0.25, 0.11), strict=True))
    darkness = min(max(darkness + looks.normal(0, 0.12), 0.0), 1.0)
    base = _tinted(tone(darkness), looks)
    colour, hair = drawn_colour(Draws("hair colour", seed, number), main, age)
    hairline = drawn_hairline(Draws("hairline", seed, number), sex, age)
    styles = _styles(Draws("style", seed, number), sex, main, age)
    beard, numbers = _painting(Draws("painting", seed, number), sex, main, age, darkness)
    brow = _brow_colour(hair, colour, age)
    skin = Skin(
        base=base,
        lips=_lips(base, Draws("lips", seed, number), sex),
        hair=hair
        if colour not in ("blond", "light blond") or sex == "female"
        else mixed(hair, COLOURS["light brown"], 0.4),
        brow=brow,
        shade=mixed(base, (0.10, 0.05, 0.05), 0.8),
        numbers=numbers,
        marks=_marks(Draws("marks", seed, number)),
        offset=np.array([looks.uniform(0, 32) for _ in range(3)], np.float32),
    )
    grows = growth(hairline) if styles[0].name != "bald" else np.zeros_like(model.chart.positions[:, :, 0])
    normals = vertex_normals(shape, model.skin)
    iris = looks.choice(tuple(IRISES), _IRIS_SHARES[main])
    attributes: dict[str, str | float] = {
        "ancestry": main,
        "sex": sex,
        "age": round(age, 1),
        "darkness": round(darkness, 3),
        "hair": colour,
        "style": styles[0].name,
        "beard": beard,
        "iris": iris,
    }
    return Person(
        seed=seed,
        number=number,
        attributes=attributes,
        shape=shape,
        ancestry=main,
        skin=painted(skin, model.chart, model.noise, grows),
        tone=base,
        hair=hair,
        iris=varied(IRISES[iris], looks, 0.15),
        iris_size=looks.uniform(0.895, 0.915),
        red=looks.uniform(0, 0.6),
        oil=looks.uniform(0.4, 1.6),
        worn=tuple(_worn(model, style, hairline, shape, normals, seed, number, k) for k, style in enumerate(styles)),
        glasses=looks.choice(("", "thin", "thick", "half"), (0.84, 0.07, 0.06, 0.03)),
    )


def _ancestry(draws: Draws) -> dict[str, float]:
    """Shares of the three ancestries, mostly of one."""
    parts = [draws.uniform() for _ in ANCESTRIES]
    parts = [part * part * part * part + 0.01 for part in parts]
    return {name: part / sum(parts) for name, part in zip(ANCESTRIES, parts, strict=True)}


def _shape(model: Model, sex: str, old: float, shares: dict[str, float], weight: float, draws: Draws) -> Vectors:
    """[V, 3] the neutral face."""
    base = model.rest
    heavy = "maxweight" if weight > 0 else "minweight"
    for age, part in (("young", 1 - old), ("old", old)):
        kinds = [(f"{name}-{sex}-{age}", share) for name, share in shares.items()]
        for kind, share in (("averageweight", 1 - abs(weight)), (heavy, abs(weight))):
            kinds.append((f"universal-{sex}-{age}-averagemuscle-{kind}", share))
        for kind, share in kinds:
            base = moved(base, model.macros[kind], np.array([part * share], np.float32))
    spread = np.array([_SPREAD[axis.partition("/")[0]] for axis in model.axes])
    striking = draws.uniform(0.6, 1.15)  # some look like everybody, some do not
    amounts = np.clip(striking * spread * draws.normals(len(model.axes)), -1, 1)
    uneven = np.clip(0.25 * draws.normals(len(model.lopsided) // 2), -1, 1)
    return moved(moved(base, model.shapes, both_directions(amounts)), model.lopsided, both_directions(uneven))


def both_directions(amounts: NDArray[np.float64]) -> NDArray[np.float32]:
    """[2 A] weights of `Model.shapes` for amounts [A] from -1 to 1."""
    return np.stack([np.maximum(-amounts, 0), np.maximum(amounts, 0)], 1).reshape(-1).astype(np.float32)


def _tinted(colour: Colour, draws: Draws) -> Colour:
    """Skin with an undertone of its own: rosy or olive, yellow or pale."""
    rosy, yellow = draws.normal(0, 0.05), draws.normal(0, 0.06)
    red, green, blue = colour
    return red * (1 + 0.3 * rosy), green * (1 - rosy), blue * (1 - rosy - yellow)


def _brow_colour(hair: Colour, name: str, age: float) -> Colour:
    """Brows are darker than fair hair and grey later."""
    if name in ("blond", "light blond", "white"):
        return mixed(hair, (0.10, 0.06, 0.03), 0.65)
    return mixed(hair, COLOURS["dark brown"], 0.45) if name == "grey" and age < 70 else hair


def _lips(base: Colour, draws: Draws, sex: str) -> Colour:
    red, green, blue = base
    deep = draws.uniform(0.42, 0.75)
    natural = (red * (0.80 + 0.15 * deep), green * deep, blue * (deep + 0.08))
    if sex == "female" and draws.chance(0.45):
        stick = draws.choice(
            ((0.45, 0.03, 0.05), (0.50, 0.12, 0.14), (0.30, 0.04, 0.08), (0.42, 0.16, 0.12), (0.55, 0.10, 0.22))
        )
        return mixed(natural, stick, draws.uniform(0.3, 0.9))
    return natural


def _styles(draws: Draws, sex: str, ancestry: str, age: float) -> tuple[Style, ...]:
    """The usual style, and another; who is bald has no other."""
    usual, other = (drawn_style(draws, sex, ancestry, age) for _ in range(2))
    return (usual,) if usual.name == "bald" else (usual, usual if other.name == "bald" else other)


def _painting(draws: Draws, sex: str, ancestry: str, age: float, darkness: float) -> tuple[str, dict[str, float]]:
    """The kind of beard, and the numbers of `skin.FIELDS`."""
    u, old = draws.uniform, min(max((age - 30) / 45, 0.0), 1.0)
    beard = "none"
    if sex == "male":
        shares = {
            "african": (3, 2, 1, 1.2, 1.2, 0.8),
            "asian": (5, 1.2, 0.6, 0.5, 0.5, 0.3),
            "caucasian": (4, 2, 0.8, 0.8, 1.4, 0.5),
        }
        beard = draws.choice(("none", "stubble", "moustache", "goatee", "full", "chin strap"), shares[ancestry])
    made_up = sex == "female" and draws.chance(0.55)
    numbers = {
        "redness": u(0.1, 1.4) * (1 - 0.6 * darkness),
        "blotches": u(0.3, 1.6),
        "pores": u(0.4, 1.6),
        "freckles": u(0.4, 1.0) if darkness < 0.4 and draws.chance(0.1) else 0.0,
        "circles": u(0.0, 1.0),
        "wrinkles": min(1.0, old * u(0.4, 1.0) + u(0, 0.08)),
        "brow_gap": u(0.10, 0.21),
        "brow_length": u(0.33, 0.46),
        "brow_height": u(0.165, 0.26),
        "brow_arch": u(-0.01, 0.075),
        "brow_peak": u(0.45, 0.8),
        "brow_tilt": draws.normal(0.012, 0.03),
        "brow_thickness": u(0.022, 0.05) if sex == "female" else u(0.032, 0.072),
        "brow_density": u(0.4, 0.95),
        "lip_fullness": u(0.55, 1.0),
        "moustache": 0.0,
        "goatee": 0.0,
        "jaw_beard": 0.0,
        "sideburns": 0.0,
        "beard_density": 0.0,
        "beard_line": u(6.45, 6.72),
        "shadow": u(0.1, 0.7) if made_up and draws.chance(0.6) else 0.0,
        "liner": u(0.3, 0.9) if made_up else 0.0,
        "blush": u(0.2, 1.0) if made_up and draws.chance(0.5) else 0.0,
    }
    areas = {
        "none": (1, 1, 1, 0.5, u(0.0, 0.16)),
        "stubble": (1, 1, 1, 1, u(0.25, 0.5)),
        "moustache": (1, 0, 0, 0, u(0.7, 1.0)),
        "goatee": (1, 1, 0, 0, u(0.6, 1.0)),
        "full": (1, 1, 1, 1, u(0.65, 1.0)),
        "chin strap": (u(0, 1), 0.8, 1, 1, u(0.5, 0.9)),
    }
    if sex == "male":
        numbers.update(
            zip(("moustache", "goatee", "jaw_beard", "sideburns", "beard_density"), areas[beard], strict=True)
        )
    if beard == "chin strap":
        numbers["beard_line"] = 6.25
    return beard, numbers


def _marks(draws: Draws) -> NDArray[np.float32]:
    """[M, 4] moles: x, y, radius and darkness."""
    count = draws.choice((0, 1, 2, 3, 5, 8), (3, 3, 3, 2, 1, 0.5))
    marks = [
        [draws.normal(0, 0.35), draws.uniform(6.3, 7.9), draws.uniform(0.012, 0.032), draws.uniform(0.3, 0.85)]
        for _ in range(count)
    ]
    return np.array(marks, np.float32).reshape(-1, 4)


def _worn(
    model: Model,
    style: Style,
    hairline: Hairline,
    shape: Vectors,
    normals: Vectors,
    *key: int,
) -> Worn:
    angle = model.chart.angle
    locks = locks_of(style, hairline, model.rest, shape, normals, model.skin, model.areas, angle, *key)
    above = hairline.above(angle, model.rest[:, 1].astype(np.float64))
    cap = style.thickness * smooth((above - 0.02) / 0.22)
    return Worn(style, locks, cap.astype(np.float32), model.skin[cap[model.skin].max(1) > 0])
