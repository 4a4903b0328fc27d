"""Optimizers and learning rates: a table of optimizers, each with its recipe keys, its slots and its update."""

from pipeline.optim.optimizer import OPTIMIZERS, Optimizer, Slot
from pipeline.section import import_modules

__all__ = ["OPTIMIZERS", "Optimizer", "Slot"]

import_modules(__name__, __path__)
