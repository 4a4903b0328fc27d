"""A head as triangles before the camera: the face, hair, and what is worn on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.exact.blending import vertex_normals
from pipeline.rendering.people.model import Model, Vectors
from pipeline.rendering.people.person import Worn
from pipeline.rendering.people.strands import Locks, ribbon_faces, ribbons
from pipeline.rendering.scene.camera import View
from pipeline.rendering.scene.materials import CAP, CLOTH, HAIR

_BEHIND = -0.55  # the least a root may face the camera for its lock to be drawn


@dataclass
class Scene:
    """Triangles as the camera has them; pieces are added one after another."""

    view: View
    points: list[NDArray[np.float32]]
    normals: list[NDArray[np.float32]]
    places: list[NDArray[np.float32]]
    faces: list[NDArray[np.int32]]
    material: list[NDArray[np.uint8]]
    both_sides: list[bool]

    def add(
        self,
        points: NDArray[np.float32],
        normals: NDArray[np.float32],
        places: NDArray[np.float32],
        faces: NDArray[np.int32],
        material: NDArray[np.uint8],
        *,
        both_sides: bool = False,
    ) -> None:
        """Add vertices [V] and faces [F, 3] between them."""
        first = sum(len(piece) for piece in self.points)
        self.points.append(points)
        self.normals.append(normals)
        self.places.append(places)
        self.faces.append(faces + np.int32(first))
        self.material.append(material)
        self.both_sides.append(both_sides)

    def add_locks(self, locks: Locks, material: int, taper: float = 0.75) -> None:
        """Add hair, as ribbons."""
        count = len(locks.width)
        if not count:
            return
        seen = self.view.seen(locks.points.reshape(-1, 3)).reshape(locks.points.shape)
        points, along, places = ribbons(seen, locks.width, locks.own, self.view.distance, taper)
        if material != HAIR:  # whatever is no hair is lit as if it were round
            along = np.tile(np.array([0.0, 0.3, 0.95], np.float32), (len(points), 1))
        faces = ribbon_faces(count, locks.points.shape[1])
        self.add(points, along, places, faces, np.full(len(faces), material, np.uint8), both_sides=True)


def scene_of(model: Model, points: Vectors, worn: Worn, view: View, hatted: NDArray[np.bool_]) -> Scene:
    """The person's head with a hairstyle, whose locks are left out where a hat is, on `hatted` [V]."""
    scene = Scene(view, [], [], [], [], [], [])
    seen = view.seen(points)
    normals = vertex_normals(seen, model.faces)
    material = np.where(model.clothed, np.uint8(CLOTH), model.part)
    scene.add(seen, normals, model.chart.places, model.faces, material)
    if len(worn.capped) and not hatted.all():
        thick = np.where(hatted, np.float32(0), worn.cap)  # a hat presses it down
        shell = seen + normals * thick[:, None]
        scene.add(shell, normals, model.chart.places, worn.capped, np.full(len(worn.capped), CAP, np.uint8))
    # What grows behind the head is hardly seen; the layer under the locks is there.
    shown = (normals[worn.locks.root, 2] > _BEHIND) & ~hatted[worn.locks.root]
    scene.add_locks(worn.locks.only(shown), HAIR)
    return scene
