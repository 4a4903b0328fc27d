"""The parametric human: MakeHuman's head, cut out of the body, with everything that moves it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.blending import Moves, double_areas
from pipeline.rendering.people.assets import Mesh, assets_folder, names_in, read_mesh, read_target
from pipeline.rendering.people.chart import Chart, chart_of
from pipeline.rendering.people.skin import lattice

Vectors = NDArray[np.float32]  # [V, 3] positions or moves of the vertices, in decimetres

ANCESTRIES = ("african", "asian", "caucasian")
SEXES = ("female", "male")
# Faces of a part are shaded alike; the number of a part is its place here.
PARTS = ("skin", "left eye", "right eye", "teeth", "lashes", "mouth")
_GROUPS = {
    "body": "skin",
    "helper-l-eye": "left eye",
    "helper-r-eye": "right eye",
    "helper-upper-teeth": "teeth",
    "helper-lower-teeth": "teeth",
    "helper-tongue": "mouth",
    "helper-l-eyelashes-1": "lashes",
    "helper-l-eyelashes-2": "lashes",
    "helper-r-eyelashes-1": "lashes",
    "helper-r-eyelashes-2": "lashes",
}
# The right wrist, and the directions of its hand across, along the fingers and out of its back.
_WRIST = (-3.85, 2.76, 1.25)
_HAND_AXES = ((-0.577, -0.352, -0.737), (-0.427, -0.639, 0.64), (-0.696, 0.684, 0.219))
_COLLAR = 5.95  # height in decimetres
_LOWEST, _WIDEST = 5.4, 2.6  # what is lower or further from the middle is not drawn: shoulders, arms, body

# Vertices of the base mesh: the foremost of the nose, and the outermost of the lips on either side of the person.
_NOSE_TIP, _LEFT_CORNER, _RIGHT_CORNER = 297, 7184, 424

_SHAPE_FOLDERS = ("cheek", "chin", "ears", "eyebrows", "eyes", "forehead", "head", "mouth", "nose")
# The end of a target's name -> (its axis, its direction); what has no such end is an axis with one direction.
_OPPOSITES = (
    ("decr", "incr"),
    ("in", "out"),
    ("down", "up"),
    ("concave", "convex"),
    ("compress", "uncompress"),
    ("backward", "forward"),
    ("square", "triangle"),
    ("l", "r"),
)
_ENDS = {end: ("-".join(pair), sign) for pair in _OPPOSITES for end, sign in zip(pair, (-1, 1), strict=True)}


@dataclass(frozen=True)
class Model:
    """The human's vertices [V], faces [F] and targets; the same for everyone, and read-only."""

    rest: Vectors  # before any target
    faces: NDArray[np.int32]  # [F, 3], counterclockwise from outside
    part: NDArray[np.uint8]  # [F] numbers in PARTS
    clothed: NDArray[np.bool_]  # [F] below the collar
    skin: NDArray[np.int32]  # [S, 3] the faces that are skin
    areas: NDArray[np.float64]  # [S] twice theirs
    chart: Chart
    noise: NDArray[np.float32]  # of the skin
    # Five groups of vertices, whose means are the landmarks: eye, eye, nose, corner, corner; left is left in the image.
    landmarks: tuple[NDArray[np.int64], ...]
    eyes: tuple[NDArray[np.int64], NDArray[np.int64]]  # the vertices of the left and the right eyeball of the person
    hand: Vectors  # [H, 3] the right hand about its wrist: its fingers up, its back to the front
    hand_faces: NDArray[np.int32]  # [G, 3]
    macros: Mapping[str, Moves]  # ancestry, sex, age and weight: one target each
    axes: tuple[str, ...]  # names of the shape axes
    shapes: Moves  # [2 * axes]: of each axis its target for -1 and for +1
    lopsided: Moves  # [2 * axes]: of each way to be uneven, its targets
    units: tuple[str, ...]  # names of the expressions' units
    expressions: Mapping[str, Moves]  # ancestry -> [units]

    @staticmethod
    def load() -> Model:
        """The model of the installed assets, read once in a process (some seconds).

        Raises:
            ModuleNotFoundError: the extra `rendered` is not installed.
        """
        return _load(assets_folder())


@cache
def _load(folder: Path) -> Model:
    mesh = read_mesh(folder)
    count = len(mesh.positions)
    quads, part = _visible(mesh)
    kept = np.unique(quads)
    renumbered = np.full(count, -1, np.int64)
    renumbered[kept] = np.arange(len(kept))

    def targets(names: Sequence[str]) -> list[Vectors]:
        return [read_target(folder / "targets" / f"{name}.target.gz", count, kept) for name in names]

    macro_names = [name for name in names_in(folder, ["macrodetails"]) if _is_adult(name)]
    shape_names = names_in(folder, _SHAPE_FOLDERS)
    axes, shapes = _axes(shape_names, targets(shape_names))
    uneven_names = [name for name in names_in(folder, ["asym"]) if "asymm" not in name]
    units = names_in(folder, ["expression/units/caucasian"])
    rest = mesh.positions[kept].astype(np.float32) + np.float32(0)  # no zero has a sign
    part = np.concatenate([part, part])
    texture = np.zeros((count, 2), np.float32)
    texture[mesh.quads["body"]] = mesh.texture[mesh.texture_quads["body"]]
    faces = renumbered[np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])].astype(np.int32)
    skin = np.ascontiguousarray(faces[part == PARTS.index("skin")])
    hand, hand_faces = _hand(mesh)
    return Model(
        rest=rest,
        faces=faces,
        part=part,
        clothed=(part == PARTS.index("skin")) & (rest[:, 1][faces].max(1) < _COLLAR),
        skin=skin,
        areas=double_areas(rest, skin),
        chart=chart_of(rest, skin, texture[kept], folder),
        noise=lattice(),
        landmarks=_landmarks(mesh, renumbered),
        eyes=(renumbered[np.unique(mesh.quads["helper-l-eye"])], renumbered[np.unique(mesh.quads["helper-r-eye"])]),
        hand=hand,
        hand_faces=hand_faces,
        macros={name.rpartition("/")[2]: Moves.of(targets([name])) for name in macro_names},
        axes=axes,
        shapes=Moves.of(shapes),
        lopsided=Moves.of(_axes(uneven_names, targets(uneven_names))[1]),
        units=tuple(name.rpartition("/")[2] for name in units),
        expressions={
            name: Moves.of(targets([unit.replace("caucasian", name) for unit in units])) for name in ANCESTRIES
        },
    )


def _visible(mesh: Mesh) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """[Q, 4] quads that are drawn and [Q] their parts."""
    quads, parts = [], []
    for group, part in _GROUPS.items():
        of_group = mesh.quads[group]
        corners = mesh.positions[of_group]
        inside = (corners[:, :, 1].min(1) > _LOWEST) & (np.abs(corners[:, :, 0]).max(1) < _WIDEST)
        quads.append(of_group[inside])
        parts.append(np.full(int(inside.sum()), PARTS.index(part), np.uint8))
    return np.concatenate(quads), np.concatenate(parts)


def _is_adult(name: str) -> bool:
    """Whether a macro target is of an adult, and of average muscles if it is of a weight."""
    is_weight = "universal" in name
    return ("young" in name or "old" in name) and (not is_weight or "averagemuscle" in name)


def _axes(names: Sequence[str], moves: Sequence[Vectors]) -> tuple[tuple[str, ...], list[Vectors]]:
    """The shape axes: opposite targets are the two directions of one, and left and right move together."""
    ends: dict[str, list[Vectors]] = {}
    for name, move in zip(names, moves, strict=True):
        plain = re.sub(r"/[lr]-", "/", name)
        stem, _, end = plain.rpartition("-")
        axis, sign = _ENDS.get(end, (end, 1))
        both = ends.setdefault(f"{stem}-{axis}", [np.zeros_like(move), np.zeros_like(move)])
        both[(sign + 1) // 2] += move
    moving = {axis: both for axis, both in ends.items() if max(float(np.abs(end).max()) for end in both) > 1e-3}
    return tuple(moving), [end for both in moving.values() for end in both]


def _landmarks(mesh: Mesh, renumbered: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """The vertices of the five landmarks, found on the base mesh."""
    positions = mesh.positions

    def pole(group: str) -> NDArray[np.int64]:
        """The foremost vertices of an eyeball: they stay behind the middle of the lids whatever the gaze."""
        of_eye = np.unique(mesh.quads[group])
        depth = positions[of_eye, 2]
        return of_eye[depth > depth.max() - 0.005]

    points = [np.array([vertex]) for vertex in (_NOSE_TIP, _RIGHT_CORNER, _LEFT_CORNER)]
    return tuple(renumbered[group] for group in (pole("helper-r-eye"), pole("helper-l-eye"), *points))


def _hand(mesh: Mesh) -> tuple[Vectors, NDArray[np.int32]]:
    """The right hand: vertices and triangles."""
    from_wrist = mesh.positions - np.array(_WRIST)
    across, along, back = (sum(axis[k] * from_wrist[:, k] for k in range(3)) for axis in _HAND_AXES)
    quads = mesh.quads["body"]
    of_hand = quads[(along[quads].min(1) > 0) & (mesh.positions[quads][:, :, 0].max(1) < -3)]
    kept = np.unique(of_hand)
    numbers = np.searchsorted(kept, of_hand)
    points = np.stack([across[kept], along[kept], back[kept]], 1)
    triangles = np.concatenate([numbers[:, [0, 1, 2]], numbers[:, [0, 2, 3]]])
    return points.astype(np.float32), triangles.astype(np.int32)
