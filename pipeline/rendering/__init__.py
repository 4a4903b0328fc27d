"""Photographs of people who do not exist, from MakeHuman's parametric human; the same bytes on every machine."""

from pipeline.rendering.model import Model
from pipeline.rendering.person import Person, person
from pipeline.rendering.photo import Photo, Variation, jpeg, photo

__all__ = ["Model", "Person", "Photo", "Variation", "jpeg", "person", "photo"]
