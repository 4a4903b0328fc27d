"""Numbers that are the same on every machine: draws, compiled loops, moved vertices, triangles in whole numbers."""
