"""Photographs of people who do not exist, from MakeHuman's parametric human; the same bytes on every machine."""

from pipeline.rendering.people.model import Model
from pipeline.rendering.people.person import Person, person
from pipeline.rendering.photo import Photo, jpeg, photo
from pipeline.rendering.variation import Variation

__all__ = ["Model", "Person", "Photo", "Variation", "jpeg", "person", "photo"]
