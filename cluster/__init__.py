"""Where it runs: ranks, collectives, telemetry, launch files. Knows nothing of faces."""
