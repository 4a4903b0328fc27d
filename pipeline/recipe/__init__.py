"""The recipe: everything that decides a training run, typed, frozen, and checked before anything starts."""
