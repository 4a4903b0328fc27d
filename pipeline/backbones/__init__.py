"""The networks that turn an aligned face into an embedding, by name: each file of them adds its own to the table."""

from pipeline.backbones import sphereface  # isort: skip  # first, as in every list of names
from pipeline.backbones import iresnet
from pipeline.backbones.backbone import BACKBONES, Backbone

__all__ = ["BACKBONES", "Backbone", "iresnet", "sphereface"]
