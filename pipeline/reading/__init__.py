"""Tars to batches: the sample at every position is a pure function of (set, seed, position), whatever the ranks."""
