"""A run: steps that all ranks agree on, saves, faults, in their order; a resumed run equals an uninterrupted one."""
