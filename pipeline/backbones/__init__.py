"""The networks that turn an aligned face into an embedding, by name: a family of them is one file here."""

from pipeline.backbones import sphereface  # isort: skip  # first, as in every list of names
from pipeline.backbones.backbone import BACKBONES, Backbone
from pipeline.section import import_modules

__all__ = ["BACKBONES", "Backbone", "sphereface"]

import_modules(__name__, __path__)
