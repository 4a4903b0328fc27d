"""Trackers that a run's numbers go to besides Prometheus, a file each; a recipe names those that it wants."""

from pipeline.section import import_modules
from pipeline.sinks.sink import SINKS, Sink, Tracked, Writer

__all__ = ["SINKS", "Sink", "Tracked", "Writer"]

import_modules(__name__, __path__)
