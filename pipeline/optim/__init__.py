"""Optimizers and learning rates: what a step does to a parameter, and which state it keeps for that, by name."""
