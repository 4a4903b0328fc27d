"""From features to numbers: pure functions, each equal to an independent float64 reference."""
