"""The networks that turn an aligned face into an embedding, by name: each file of them adds its own to the table."""

from pipeline.backbones import iresnet, sphereface
from pipeline.backbones.backbone import BACKBONES, Backbone

__all__ = ["BACKBONES", "Backbone", "iresnet", "sphereface"]
