"""How hair is worn, and its colours: a table of styles, whose numbers are drawn within ranges."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.rendering.exact.draws import Draws

Colour = tuple[float, float, float]  # linear reflectance
Range = tuple[float, float]

# Natural colours, the darkest first, as people have them; then those of age.
COLOURS: dict[str, Colour] = {
    "black": (0.012, 0.010, 0.009),
    "dark brown": (0.035, 0.022, 0.015),
    "brown": (0.085, 0.048, 0.027),
    "light brown": (0.18, 0.105, 0.055),
    "blond": (0.43, 0.25, 0.12),
    "light blond": (0.62, 0.45, 0.27),
    "red": (0.30, 0.095, 0.03),
    "auburn": (0.13, 0.038, 0.02),
    "grey": (0.27, 0.265, 0.27),
    "white": (0.62, 0.60, 0.57),
}
_NATURAL = 8
_SHARES = {
    "african": (0.80, 0.17, 0.02, 0.004, 0.002, 0.002, 0.001, 0.001),
    "asian": (0.72, 0.22, 0.04, 0.01, 0.004, 0.002, 0.002, 0.002),
    "caucasian": (0.08, 0.27, 0.26, 0.15, 0.12, 0.05, 0.04, 0.03),
}
_STRAIGHT = {"african": 0.15, "asian": 0.85, "caucasian": 0.6}


@dataclass(frozen=True)
class Style:
    """How hair is worn. Lengths in decimetres; the rest are weights, about 1."""

    name: str
    top: float = 0.0
    side: float = 0.0
    back: float = 0.0
    fringe: float = 0.0  # how far down the forehead hair of the front hangs: 0 not at all, 1 to the brows
    part: float = 0.0  # where it is parted, from -1 to 1
    sideways: float = 0.0  # how it is combed: away from the parting, back, to the front, down
    backwards: float = 0.0
    forwards: float = 0.0
    down: float = 0.0
    lift: float = 0.6  # how far it stands off at the root
    fall: float = 0.3  # how soon it hangs
    curl: float = 0.0  # radius of its curls
    turns: float = 2.0  # of a curl, in a lock
    volume: float = 0.06  # how far off the head it lies
    frizz: float = 0.12
    thickness: float = 0.05  # of the layer under the locks
    count: float = 1200  # of locks, and their width
    width: float = 0.036
    clear: float = 0.62  # how far aside it hangs, in front


# Ranges of what differs from `Style`'s defaults; "curl" scales the curls that a person has.
STYLES: dict[str, dict[str, Range]] = {
    "bald": {"thickness": (0, 0), "count": (0, 0)},
    "buzz": {"thickness": (0.004, 0.02), "count": (0, 0)},
    "short": {
        "top": (0.15, 0.4),
        "side": (0.1, 0.25),
        "back": (0.1, 0.25),
        "forwards": (-0.2, 0.7),
        "down": (0.4, 0.4),
        "lift": (0.5, 1.4),
        "fall": (0.1, 0.1),
        "curl": (0.6, 0.6),
        "frizz": (0.3, 0.3),
        "thickness": (0.02, 0.05),
        "count": (1500, 1500),
        "width": (0.028, 0.028),
    },
    "parted": {
        "top": (0.6, 1.0),
        "side": (0.2, 0.4),
        "back": (0.3, 0.3),
        "sideways": (1, 1),
        "backwards": (0, 0.6),
        "lift": (0.3, 1.0),
        "curl": (0.4, 0.4),
        "volume": (0.03, 0.14),
    },
    "back": {
        "top": (0.6, 1.3),
        "side": (0.3, 0.5),
        "back": (0.5, 0.5),
        "sideways": (0.2, 0.2),
        "backwards": (1, 1),
        "lift": (0.2, 1.3),
        "fall": (0.1, 0.1),
        "curl": (0.4, 0.4),
        "volume": (0.03, 0.18),
        "frizz": (0.08, 0.08),
    },
    "fringe": {
        "top": (0.5, 0.9),
        "side": (0.3, 0.6),
        "back": (0.4, 0.4),
        "fringe": (0.3, 0.95),
        "forwards": (1, 1),
        "down": (0.5, 0.5),
        "sideways": (0, 0.5),
        "lift": (0.4, 0.4),
        "curl": (0.3, 0.3),
        "volume": (0.05, 0.12),
        "thickness": (0.07, 0.07),
    },
    "tousled": {
        "top": (0.5, 1.0),
        "side": (0.3, 0.6),
        "back": (0.5, 0.5),
        "fringe": (0, 0.5),
        "forwards": (-0.3, 0.6),
        "sideways": (0, 0.6),
        "lift": (0.8, 1.6),
        "curl": (1.3, 1.3),
        "turns": (1.5, 1.5),
        "frizz": (0.5, 0.5),
        "volume": (0.1, 0.25),
        "thickness": (0.1, 0.1),
    },
    "undercut": {
        "top": (0.7, 1.2),
        "side": (0.05, 0.05),
        "back": (0.05, 0.05),
        "backwards": (0, 1),
        "sideways": (1, 1),
        "lift": (0.4, 1.3),
        "volume": (0.06, 0.2),
        "thickness": (0.03, 0.03),
    },
    "afro": {
        "top": (0.25, 0.9),
        "side": (0.22, 0.75),
        "back": (0.22, 0.8),
        "lift": (4, 4),
        "fall": (0, 0),
        "curl": (0.6, 0.9),
        "turns": (3, 5),
        "frizz": (0.5, 0.5),
        "volume": (0.15, 0.5),
        "thickness": (0.2, 0.65),
        "count": (1500, 1500),
        "width": (0.04, 0.04),
        "clear": (0, 0),
    },
    "pixie": {
        "top": (0.5, 0.8),
        "side": (0.4, 0.6),
        "back": (0.5, 0.5),
        "fringe": (0.2, 0.8),
        "forwards": (0.7, 0.7),
        "sideways": (0.7, 0.7),
        "lift": (0.5, 0.5),
        "curl": (0.3, 0.3),
        "volume": (0.1, 0.1),
        "thickness": (0.07, 0.07),
    },
    "tied": {
        "top": (0.9, 1.3),
        "side": (0.9, 1.2),
        "back": (0.6, 0.6),
        "backwards": (1.2, 1.2),
        "sideways": (0.1, 0.1),
        "lift": (0.15, 0.15),
        "fall": (0.05, 0.05),
        "curl": (0.2, 0.2),
        "frizz": (0.05, 0.05),
        "volume": (0.02, 0.02),
        "thickness": (0.035, 0.035),
    },
    "curls": {
        "top": (1.2, 2.4),
        "side": (1.2, 2.4),
        "back": (1.6, 1.6),
        "sideways": (0.8, 0.8),
        "down": (0.5, 0.5),
        "lift": (1, 2),
        "fall": (0.5, 0.5),
        "curl": (1.0, 1.6),
        "turns": (3, 6),
        "frizz": (0.5, 0.5),
        "volume": (0.2, 0.45),
        "thickness": (0.18, 0.18),
        "count": (1000, 1000),
        "width": (0.05, 0.05),
    },
    "bob": {
        "top": (1.4, 1.8),
        "side": (1.0, 1.4),
        "back": (1.1, 1.1),
        "sideways": (1, 1),
        "down": (0.8, 0.8),
        "lift": (0.4, 0.4),
        "fall": (1.0, 1.0),
        "curl": (0.3, 0.3),
        "volume": (0.06, 0.2),
        "thickness": (0.1, 0.1),
        "count": (1000, 1000),
        "width": (0.05, 0.05),
        "clear": (0.5, 0.66),
    },
}
_LONG: dict[str, Range] = {
    "top": (1.8, 3.0),
    "side": (1.8, 3.0),
    "back": (2.0, 3.0),
    "sideways": (0.8, 0.8),
    "down": (1.0, 1.0),
    "backwards": (-0.1, 0.4),
    "lift": (0.1, 0.5),
    "fall": (1.3, 1.3),
    "curl": (0.5, 0.5),
    "turns": (1, 2.5),
    "volume": (0.03, 0.16),
    "thickness": (0.04, 0.12),
    "count": (950, 950),
    "width": (0.058, 0.058),
    "clear": (0.52, 0.7),
}
STYLES |= {
    "long": _LONG,
    "straight": _LONG | {"part": (0.0, 0.1)},
    "waves": _LONG | {"curl": (1.2, 1.2)},
    "fringed": _LONG | {"fringe": (0.75, 1.05)},
    "bob with a fringe": STYLES["bob"] | {"fringe": (0.8, 1.0)},
}

# Shares of the styles by sex: of people of Asian and European ancestry, and of African.
_WORN = {
    "male": {
        "bald": (0.03, 0.12),
        "buzz": (0.10, 0.40),
        "short": (0.22, 0.14),
        "parted": (0.18, 0.0),
        "back": (0.13, 0.02),
        "fringe": (0.10, 0.0),
        "tousled": (0.14, 0.02),
        "afro": (0.0, 0.20),
        "long": (0.05, 0.07),
        "undercut": (0.05, 0.02),
    },
    "female": {
        "straight": (0.20, 0.12),
        "waves": (0.20, 0.12),
        "bob": (0.10, 0.06),
        "bob with a fringe": (0.05, 0.03),
        "fringed": (0.14, 0.07),
        "tied": (0.15, 0.20),
        "pixie": (0.06, 0.03),
        "afro": (0.0, 0.20),
        "curls": (0.06, 0.16),
        "long": (0.14, 0.08),
        "buzz": (0.004, 0.05),
    },
}


def drawn_style(draws: Draws, sex: str, ancestry: str, age: float) -> Style:
    """A style that a person may wear; men are bald the oftener the older they are."""
    column = int(ancestry == "african")
    shares = {name: share[column] for name, share in _WORN[sex].items()}
    if sex == "male":
        shares["bald"] += 0.2 * max(0.0, (age - 35) / 40)
    name = draws.choice(tuple(shares), tuple(shares.values()))
    curl = 0.004 if draws.chance(_STRAIGHT[ancestry]) else draws.uniform(0.015, 0.06)
    if name in ("afro", "curls", "waves"):
        curl = max(curl, 0.035)
    side = draws.choice((-1.0, 1.0))
    numbers = {field: draws.uniform(low, high) for field, (low, high) in ({"part": (0.05, 0.5)} | STYLES[name]).items()}
    numbers["part"] *= side
    numbers["curl"] = numbers.get("curl", 0.0) * curl
    return Style(name, **numbers)


def drawn_colour(draws: Draws, ancestry: str, age: float) -> tuple[str, Colour]:
    """The name and the reflectance of a person's hair: grey with age, unless it is dyed."""
    name = draws.choice(tuple(COLOURS)[:_NATURAL], _SHARES[ancestry])
    grey = min(max((age - 42) / 30 + draws.normal(0, 0.3), 0.0), 1.0)
    if draws.chance(0.3):
        grey = 0.0
    if grey > 0.75:
        name = draws.choice(("grey", "white"))
        return name, varied(COLOURS[name], draws, 0.05)
    return name, mixed(varied(COLOURS[name], draws, 0.12), COLOURS["grey"], 0.7 * grey)


def mixed(a: Colour, b: Colour, part: float) -> Colour:
    """From `a` for 0 to `b` for 1."""
    red, green, blue = ((1 - part) * x + part * y for x, y in zip(a, b, strict=True))
    return red, green, blue


def varied(colour: Colour, draws: Draws, deviation: float) -> Colour:
    """A colour near another."""
    red, green, blue = (max(0.004, c * (1 + draws.normal(0, deviation))) for c in colour)
    return red, green, blue
