"""Fixtures shared by every kind of test."""

import os

# Several test processes share the machine's cores: one thread each keeps them from fighting,
# and keeps sums in one order so that bitwise comparisons mean something.
os.environ.setdefault("OMP_NUM_THREADS", "1")
